/**
 * A place in the operating system's queue that can be given up: a worker stands
 * there. No lock can be moved to another thread, but two threads can share one. So
 * the worker shares its lock with its owner, then leaves.
 */

import { quietly } from "../_error.ts";
import { WINDOWS } from "../_path.ts";
import { clock, keep } from "./clock.ts";
import { tryOpen } from "./file.ts";

/**
 * The last step of a worker, or the one for which its owner asks. Both see it at
 * once: one message would take as long as all the steps.
 */
const STANDS = 1;
const HAS_TURN = 2; // the owner may ask it to share: 3
const SHARES = 4;
const LEAVE = 5; // the owner asks for it
const LEFT = 6; // the owner may ask it to stand again: 0, or else it closes: 7

/**
 * The code of the worker. It opens only regular files, and blocks in no call that
 * its owner cannot end: nothing could terminate it there. It keeps the lock for
 * 100 ms at most at each step, since its owner may be busy, or wait for a program
 * that needs it. An idle worker closes, since it would keep the script alive.
 */
export const CODE = `
  let idle;
  onmessage = async ({ data: [path, last] }) => {
    clearTimeout(idle);
    const take = (step, ms = 0) => {
      Atomics.compareExchange(last, 0, step - 1, step);
      Atomics.notify(last, 0);
      postMessage(0);
      Atomics.wait(last, 0, step, ms);
      return Atomics.load(last, 0);
    };
    let file;
    try {
      if (!(await Deno.stat(path)).isFile) return;
      file = await Deno.open(path, { read: true, write: true })
        .catch(() => Deno.open(path));
      take(1);
      await file.lock(true);
      if (take(2, 100) === 3 && file.tryLockSync(false)) take(4, 100);
      file.unlockSync(); // a child that starts now may keep the file open
    } catch {
    } finally {
      file?.close();
      Atomics.store(last, 0, 5);
      take(6);
      idle = setTimeout(() => take(7) === 7 && close(), 1000);
    }
  };
`;

const realWorker = keep("Worker");

/** Tests of this library replace it. */
export const system = {
  startWorker(path: string): Worker {
    using files = new DisposableStack();
    // A worker that finds too few free descriptors ends the whole program.
    for (let i = 0; i < 16; i++) files.use(Deno.openSync(path));
    files.dispose();
    const url = `data:text/javascript,${encodeURIComponent(CODE)}`;
    return new (realWorker())(url, { type: "module" });
  },
};

/**
 * How many places this thread may have, and how many of one path it may leave in
 * how many milliseconds. One that was left keeps a thread until its turn.
 */
const MOST = 8;
const MOST_LEFT = 2;
const RECENT = 5000;

/** The places that somebody has, or that were left. */
export const places = new Set<Place>();

/** Forgets the places left on a path, since its lock has been free. */
export function forgetLeft(path: string): void {
  for (const place of places) {
    if (place.leftAt && place.path === path) places.delete(place);
  }
}

export class Place implements Disposable {
  /** When its owner left it, if that was before the turn. */
  leftAt: number | undefined;

  readonly #worker: Worker;
  readonly #last = new Int32Array(new SharedArrayBuffer(4));

  /** Takes a place, or throws. The place calls `wake` when it has news. */
  constructor(readonly path: string, wake: () => void) {
    for (const { path } of places.size < MOST ? [] : [...places]) {
      using file = quietly(() => tryOpen(path, false) ?? null);
      if (file !== null) forgetLeft(path); // undefined: the file was deleted
    }
    const from = clock.now() - RECENT;
    const left = [...places].filter((p) => p.path === path && p.leftAt! > from);
    const isFull = places.size >= MOST || left.length >= MOST_LEFT;
    // Windows cannot turn an exclusive lock into a shared one.
    if (isFull || WINDOWS || !Deno.statSync(path).isFile) throw new Error();
    this.#worker = system.startWorker(path);
    this.#worker.onmessage = () => {
      if (Atomics.load(this.#last, 0) > LEFT) places.delete(this); // it closes
      wake();
    };
    this.#worker.onerror = (event) => event.preventDefault(); // its owner polls
    this.#worker.postMessage([path, this.#last]);
    places.add(this);
  }

  /** Whether the worker waits in the system. */
  get stands(): boolean {
    return Atomics.load(this.#last, 0) === STANDS;
  }

  /** Whether the worker has got the lock, or can wait no longer. */
  get isOver(): boolean {
    return Atomics.load(this.#last, 0) >= HAS_TURN;
  }

  /** Stands in the queue again, at its end, unless the worker has closed. */
  stand(): boolean {
    const isReady = Atomics.compareExchange(this.#last, 0, LEFT, 0) === LEFT;
    if (isReady) this.#worker.postMessage([this.path, this.#last]);
    return isReady;
  }

  /** Passes the lock on to an open file, unless others share it meanwhile. */
  passTo(file: Deno.FsFile): boolean {
    const isPassed = this.#goOnFrom(HAS_TURN) &&
        quietly(() => file.tryLockSync(false)) && this.#goOnFrom(SHARES) &&
        quietly(() => file.tryLockSync(true)) || false;
    if (!isPassed) quietly(() => file.unlockSync()); // macOS still shares it
    return isPassed;
  }

  /** Asks for the next step, which takes 0.1 ms if the worker is not late. */
  #goOnFrom(step: number): boolean {
    const last = this.#last;
    const asked = step + 1;
    if (Atomics.compareExchange(last, 0, step, asked) !== step) return false;
    Atomics.notify(last, 0);
    Atomics.wait(last, 0, asked, 100);
    return Atomics.load(last, 0) === asked + 1;
  }

  [Symbol.dispose](): void {
    if (this.isOver) places.delete(this);
    else this.leftAt = clock.now();
    Atomics.store(this.#last, 0, LEAVE);
    Atomics.notify(this.#last, 0);
    this.#worker.terminate();
  }
}
