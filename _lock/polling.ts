/** How a waiter tries that cannot wait in the operating system. */

import { clock } from "./clock.ts";

/** The milliseconds to pause: a freed lock idles for a fortieth of the wait. */
export function pauseAfter(waited: number): number {
  const random = 1 - Math.random() / 2; // to fall out of step with others
  return Math.max(Math.min(waited / 40, 100) * random, 1);
}

/** How much of this thread's time bursts may take, and of how many milliseconds. */
const SHARE = 0.005;
const WINDOW = 10_000;

/** Bursts have used up the thread's time until then. */
let spent = -WINDOW;

/**
 * Tries once, or in a burst of 1 ms if this thread may: those who wait in the
 * operating system need some microseconds to wake after a release, and a burst
 * gets in before them. All paths share the time, or else many would take it all.
 */
export function tryBurst(attempt: () => boolean): boolean {
  if (attempt()) return true;
  const start = clock.now();
  spent = Math.max(spent, start - WINDOW);
  const end = start + Math.min((start - spent) * SHARE, 1);
  let now = start;
  let succeeded = false;
  while (!succeeded && now < end) {
    succeeded = attempt();
    now = clock.now();
  }
  spent += (now - start) / SHARE;
  return succeeded;
}
