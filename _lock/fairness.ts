import { clock } from "./clock.ts";

/** The longest gap, in milliseconds. Others try every 100 ms at least. */
const LONGEST = 110;

/**
 * The time for which a thread has had a path. A thread that releases a lock can
 * have it again before any other program runs. So it leaves a gap to the others,
 * in proportion to its streak, and a shorter pause does not end that.
 */
export class Streak {
  #since = -Infinity;
  /** The last release. */
  #until = -Infinity;
  #gap = 0;

  /** The path is held from now on. */
  resume(): void {
    const now = clock.now();
    if (now >= this.#until + this.#gap) this.#since = now;
  }

  /** The path is free from now on. */
  pause(): void {
    this.#until = clock.now();
    // A random share, to fall out of step with others' regular tries.
    const share = 0.05 + 0.1 * Math.random();
    this.#gap = Math.min(share * (this.#until - this.#since), LONGEST);
  }

  /** The milliseconds for which the path must still be left to others. */
  get owed(): number {
    if (this.#until - this.#since < 100) return 0;
    return Math.max(this.#until + this.#gap - clock.now(), 0);
  }

  get isOver(): boolean {
    return clock.now() >= this.#until + this.#gap;
  }
}
