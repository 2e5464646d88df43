/** Polling, for waiters that cannot wait in the operating system. */

import { clock } from "./clock.ts";

/**
 * The pause in milliseconds. A freed lock idles for at most a fortieth of the
 * wait, or 1 ms.
 */
export function pauseAfter(waited: number): number {
  const random = 1 - Math.random() / 2; // to fall out of step with others
  return Math.max(Math.min(waited / 40, 100) * random, 1);
}

/**
 * The share of this thread's time that bursts may take, and the milliseconds
 * over which unused time adds up.
 */
const SHARE = 0.005;
const WINDOW = 10_000;

/** Bursts have used up the thread's time until then. */
let spent = -WINDOW;
let lastEnd = 0;

/**
 * Tries once, or in a burst of 1 ms if this thread may: those who wait in the
 * operating system need some microseconds to wake after a release, and a burst
 * gets in before them. All paths share the time, or else many would take it all.
 */
export function tryBurst(attempt: () => boolean): boolean {
  if (attempt()) return true;
  const start = clock.now();
  spent = Math.max(spent, start - WINDOW);
  // The event loop must get its turn, also if many try one after the other.
  const rest = start - lastEnd;
  const end = start + Math.min((start - spent) * SHARE, rest, 1);
  let now = start;
  let succeeded = false;
  while (!succeeded && now < end) {
    succeeded = attempt();
    now = clock.now();
  }
  spent += (now - start) / SHARE;
  lastEnd = now;
  return succeeded;
}

/**
 * How many waits may stand in the operating system at once. Each one occupies a
 * thread of the pool that all of Deno's file operations share. Before Deno 2.9.6
 * it has 32, and on Windows four for each core:
 * https://github.com/denoland/deno/issues/22504
 */
const PLACES = 2;

/** One who polls, but only for want of a place. */
interface Seeker {
  readonly seeksPlace: boolean;
  wake(): void;
}

/** The places in the operating system. */
class Places {
  #taken = 0;
  /** In the order of asking. */
  readonly #seekers = new Set<Seeker>();

  /** Takes a place, or else wakes the seeker when one is free. */
  take(seeker: Seeker): boolean {
    if (this.#taken === PLACES) {
      this.#seekers.add(seeker);
      return false;
    }
    this.#seekers.delete(seeker);
    this.#taken++;
    return true;
  }

  free(): void {
    this.#taken--;
    this.#wakeNext();
  }

  /** The seeker has what it waits for, or has given up. */
  forget(seeker: Seeker): void {
    if (this.#seekers.delete(seeker)) this.#wakeNext();
  }

  #wakeNext(): void {
    if (this.#taken === PLACES) return;
    for (const seeker of this.#seekers) {
      if (seeker.seeksPlace) return seeker.wake();
    }
  }
}

export const places = new Places();
