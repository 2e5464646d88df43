import { clock } from "./clock.ts";

/** The longest gap, in milliseconds. Pollers try at least every 100 ms. */
const LONGEST = 110;

/**
 * The time for which a thread has had a path. A thread that releases a lock can
 * have it again before any other program runs. So it leaves a gap to the
 * others, in proportion to its streak. A shorter pause does not end the streak.
 */
export class Streak {
  #since = 0;
  /** When the path will have been free for long enough. */
  #overAt = 0;
  #isLong = false;

  /** The path is held from now on. */
  begin(): void {
    const now = clock.now();
    if (now >= this.#overAt) this.#since = now;
  }

  /** The path is free from now on. */
  end(): void {
    const now = clock.now();
    const length = now - this.#since;
    // A random share, to fall out of step with others' regular tries.
    const share = 0.05 + 0.1 * Math.random();
    this.#overAt = now + Math.min(share * length, LONGEST);
    this.#isLong = length >= 100;
  }

  get isOver(): boolean {
    return clock.now() >= this.#overAt;
  }

  /** The milliseconds for which the path must still be left to others. */
  get owed(): number {
    return this.#isLong ? Math.max(this.#overAt - clock.now(), 0) : 0;
  }
}

/** The pause of a poller in milliseconds. A free lock idles no longer than that. */
export function pauseAfter(waited: number): number {
  const random = 1 - Math.random() / 2; // to fall out of step with others
  return Math.max(Math.min(waited / 40, 100) * random, 1);
}
