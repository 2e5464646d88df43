/**
 * A place in the operating system's queue that can be given up: a worker stands
 * there. No lock can be moved to another thread. But two threads can share one.
 */

import { quietly } from "../_error.ts";
import { WINDOWS } from "../_path.ts";
import { clock, keep } from "./clock.ts";
import { tryOpen } from "./file.ts";

/**
 * The code of the worker. It opens only files, and waits in no synchronous call:
 * nothing could terminate it there. An owner that is late may wait in one, for a
 * program that needs the lock.
 */
export const CODE = `
  let file, late;
  void [setTimeout, clearTimeout]; // Deno takes long to load them
  const steps = {
    async stand(path) {
      if (!(await Deno.stat(path)).isFile) return false;
      file = await Deno.open(path, { read: true, write: true })
        .catch(() => Deno.open(path));
      postMessage("stands");
      await file.lock(true);
      late = setTimeout(steps.leave, 1000);
    },
    share() {
      clearTimeout(late);
      late = setTimeout(steps.leave, 1000);
      return file.tryLockSync(false);
    },
    leave() {
      clearTimeout(late);
      file.unlockSync(); // a child that starts now may keep the file open
      file.close();
    },
  };
  onmessage = async ({ data: [step, path] }) => {
    const isDone = (async () => await steps[step](path) !== false)();
    postMessage(await isDone.catch(() => false));
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

/** Forgets the places left on the paths whose locks have been free since. */
export function forgetLeft(wasFree: (path: string) => boolean): void {
  for (const place of places) {
    if (place.leftAt && wasFree(place.path)) places.delete(place);
  }
}

export class Place implements Disposable {
  /** Whether the worker waits in the system. */
  stands = false;
  /** Whether the worker has got the lock, once that is known. */
  turn: boolean | undefined;
  /** When its owner has left it, if that was before the turn. */
  leftAt: number | undefined;

  readonly #worker: Worker;
  #idling: ReturnType<typeof clock.setTimeout> | undefined;
  #answer!: (isDone: boolean) => void;

  /** Takes a place, which calls `wake` when it has news, or throws. */
  constructor(readonly path: string, wake: () => void) {
    if (places.size >= MOST) {
      forgetLeft((path) => {
        using file = quietly(() => tryOpen(path, false) ?? null);
        return file !== null; // nobody holds a deleted file: undefined
      });
    }
    const from = clock.now() - RECENT;
    const left = [...places].filter((p) => p.path === path && p.leftAt! > from);
    const isFull = places.size >= MOST || left.length >= MOST_LEFT;
    // Windows converts no locks.
    if (isFull || WINDOWS || !Deno.statSync(path).isFile) throw new Error();
    this.#worker = system.startWorker(path);
    const hear = (news: boolean | "stands") => {
      if (news === "stands") this.stands = true;
      else this.#answer(news);
      wake();
    };
    this.#worker.onmessage = ({ data }) => hear(data);
    this.#worker.onerror = (event) => (event.preventDefault(), hear(false));
    this.stand();
    places.add(this);
  }

  /** Calls `end` after a second, since an idle worker keeps the script alive. */
  idle(end: () => void): void {
    clock.clearTimeout(this.#idling);
    this.#idling = clock.setTimeout(end, 1000);
  }

  /** Stands in the queue, at its end. */
  stand(): void {
    clock.clearTimeout(this.#idling);
    this.stands = false;
    this.turn = undefined;
    this.#answer = (isDone) => this.turn = isDone;
    this.#worker.postMessage(["stand", this.path]);
  }

  /**
   * Passes the lock on to another open file, unless somebody shares it meanwhile.
   * The worker waits for each step, since this thread may be busy.
   */
  async passTo(file: Deno.FsFile): Promise<boolean> {
    const isPassed = await this.#ask("share") &&
        quietly(() => file.tryLockSync(false)) && await this.#ask("leave") &&
        quietly(() => file.tryLockSync(true)) || false;
    if (!isPassed) quietly(() => file.unlockSync()); // macOS still shares it
    return isPassed;
  }

  #ask(step: string): Promise<boolean> {
    const { promise, resolve } = Promise.withResolvers<boolean>();
    this.#answer = resolve;
    if (this.turn) this.#worker.postMessage([step]);
    else resolve(false);
    return promise;
  }

  /** Leaves the place. A step that is under way fails. */
  [Symbol.dispose](): void {
    clock.clearTimeout(this.#idling);
    this.#worker.terminate();
    if (this.turn === undefined) this.leftAt = clock.now();
    else places.delete(this);
    this.#answer(this.turn = false);
  }
}
