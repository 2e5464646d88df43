/**
 * The lock as one thread sees it. Its callers need a queue of their own: the
 * operating system keeps no order among pollers, and a wait in it occupies a
 * thread. So each path has at most one such wait, on behalf of all its callers.
 */

import { quietly } from "../_error.ts";
import { toPath } from "../_path.ts";
import type { LockOptions, Release } from "../lock.ts";
import { onAbort, unlessAborted } from "./abort.ts";
import { clock } from "./clock.ts";
import { pauseAfter, Streak } from "./fairness.ts";
import { isCurrent, openFile, tryFile, tryOpen, waitForFile } from "./file.ts";
import { forgetLeft, Place } from "./place.ts";
import { leaveThread, takeThread } from "./pool.ts";

/** Acquires the lock. The abort of `owner` abandons the wait, too. */
export async function acquire(
  path: string | URL,
  options: LockOptions = {},
  owner?: AbortSignal,
): Promise<Release> {
  if (typeof (options ?? 0) !== "object" || options instanceof AbortSignal) {
    throw new TypeError("Cannot lock: pass options such as { signal }");
  }
  const { signal, onWait } = options;
  signal?.throwIfAborted();
  owner?.throwIfAborted();
  const mutex = mutexAt(toPath(path));
  const free = mutex.streak.owed > 0 ? undefined : mutex.try(owner);
  const release = await (free ?? mutex.queue(onWait, signal, owner));
  return unlessAborted(release, [signal, owner]);
}

/** Acquires the lock if it is free. */
export async function tryAcquire(
  path: string | URL,
  owner?: AbortSignal,
): Promise<Release | null> {
  owner?.throwIfAborted();
  const release = await mutexAt(toPath(path)).try(owner);
  return release ? unlessAborted(release, [owner]) : null;
}

/** Releases the owner's lock on the absolute path, if any. */
export function releaseOf(owner: AbortSignal, path: string): void {
  mutexes.get(path)?.releaseOf(owner);
}

/** The milliseconds of polling first: the start of a worker costs 20. */
const PATIENCE = 200;

/** One call that waits for the lock. */
interface Waiter extends PromiseWithResolvers<Release> {
  readonly since: number;
  readonly owner: AbortSignal | undefined;
  /** Why it was abandoned, though perhaps too late to reject. */
  abandoned?: { reason: unknown };
}

/** The mutexes of this thread, by path. */
const mutexes = new Map<string, Mutex>();
let capacity = 64;

/** The mutex of the path. A full table drops the idle ones, all at once. */
function mutexAt(path: string): Mutex {
  let mutex = mutexes.get(path);
  if (mutex && !mutex.isStale) return mutex;
  if (mutexes.size >= capacity) {
    for (const [path, { isIdle }] of mutexes) {
      if (isIdle) mutexes.delete(path);
    }
    capacity = Math.max(2 * mutexes.size, 64);
  }
  mutexes.set(path, mutex = new Mutex(path));
  return mutex;
}

/** All that this thread does with the lock on one path. */
class Mutex {
  /** The locked file of the holder. */
  #held: Deno.FsFile | undefined;
  #owner: AbortSignal | undefined;
  readonly streak = new Streak();

  /** In the order in which they asked. */
  readonly #waiters = new Set<Waiter>();
  /** The waiters without a signal, after their `onWait`. */
  readonly #blockers = new Set<Waiter>();

  #isServing = false;
  /** The file for which it waits in Deno's pool, even if all have left. */
  #awaited: Deno.FsFile | undefined;
  /** The place of all waiters, while one with a signal is among them. */
  #place: Place | undefined;
  #gap: Promise<void> | undefined;
  /** Ends the pause, if any. */
  wake = (): void => {};

  constructor(readonly path: string) {}

  get isIdle(): boolean {
    return !this.#held && !this.#isServing && this.streak.isOver;
  }

  /** Whether all have left a wait for a file that was deleted since. */
  get isStale(): boolean {
    return this.#awaited !== undefined && !this.#held &&
      this.#waiters.size === 0 && !isCurrent(this.path, this.#awaited);
  }

  /** Acquires the lock if nobody holds it and nobody in this thread waits for it. */
  try(owner: AbortSignal | undefined): Release | undefined {
    if (this.#held || this.#waiters.size > 0) return undefined;
    const file = tryOpen(this.path);
    return file && this.#grant(file, owner);
  }

  /** Waits in the queue of this thread. */
  async queue(
    onWait: LockOptions["onWait"],
    signal: AbortSignal | undefined,
    owner: AbortSignal | undefined,
  ): Promise<Release> {
    const since = clock.now();
    const waiter: Waiter = { ...Promise.withResolvers(), since, owner };
    using _ = onAbort([signal, owner], (reason) => this.#fail(waiter, reason));
    this.#waiters.add(waiter);
    if (!this.#held && !this.#isServing) this.#serve();
    this.#announce(waiter, onWait, !signal);
    const release = await waiter.promise;
    if (!waiter.abandoned) return release;
    release();
    throw waiter.abandoned.reason;
  }

  releaseOf(owner: AbortSignal): void {
    if (this.#held && this.#owner === owner) this.#release(this.#held);
  }

  #grant(file: Deno.FsFile, owner: AbortSignal | undefined): Release {
    forgetLeft(this.path);
    this.#held = file;
    this.#owner = owner;
    this.streak.begin();
    const release: Release = () => this.#release(file);
    release[Symbol.dispose] = release;
    return release;
  }

  #release(file: Deno.FsFile): void {
    if (this.#held !== file) return; // released before
    this.#held = undefined;
    // Closing frees it too, but on Windows that may take a while.
    quietly(() => file.unlockSync());
    file.close();
    this.streak.end();
    if (this.#isServing) this.wake();
    else if (this.#waiters.size > 0) this.#serve();
  }

  #fail(waiter: Waiter, reason: unknown): void {
    waiter.abandoned = { reason };
    waiter.reject(reason);
    this.#leave(waiter);
  }

  #leave(waiter: Waiter): void {
    this.#waiters.delete(waiter);
    this.#blockers.delete(waiter);
    if (this.#waiters.size === 0) this.#leavePlace();
    this.wake();
  }

  #leavePlace(): void {
    this.#place = void this.#place?.[Symbol.dispose]();
  }

  /** Calls `onWait`, unless the wait was only to give way and is over. */
  async #announce(
    waiter: Waiter,
    onWait: LockOptions["onWait"],
    mayBlock: boolean,
  ): Promise<void> {
    await this.#gap;
    if (!this.#waiters.has(waiter)) return;
    try {
      onWait?.();
    } catch (error) {
      this.#fail(waiter, error);
    }
    if (!mayBlock || !this.#waiters.has(waiter)) return;
    this.#blockers.add(waiter);
    this.wake();
  }

  /** Gets the lock, and grants it to whoever is first by then. */
  async #serve(): Promise<void> {
    this.#isServing = true;
    if (this.streak.owed > 0) await (this.#gap = this.#giveWay());
    const mustServe = () => this.#waiters.size > 0 && !this.#held;
    while (mustServe()) {
      using opened = new DisposableStack();
      try {
        const file = opened.use(openFile(this.path));
        const isLocked = tryFile(this.path, file) || await this.#wait(file);
        if (!isLocked || !mustServe()) continue;
        if (!isCurrent(this.path, file)) {
          opened.dispose();
          await this.#pause(1); // some file systems show another file each time
          continue;
        }
        const [first] = this.#waiters;
        opened.move();
        first.resolve(this.#grant(file, first.owner));
        this.#leave(first);
      } catch (error) {
        if (!mustServe()) continue;
        for (const waiter of this.#waiters) this.#fail(waiter, error);
      }
    }
    this.#isServing = false;
  }

  /** Waits until the file is locked, or until all have left: tells which. */
  async #wait(file: Deno.FsFile): Promise<boolean> {
    const wake = () => this.wake();
    let [patience, dueAt] = [PATIENCE, 0];
    const hasSignals = () => this.#blockers.size < this.#waiters.size;
    if (!hasSignals() || !this.#place?.stand()) this.#leavePlace();
    try {
      do {
        const now = clock.now();
        const [{ since }] = this.#waiters;
        const mayBlock = this.#blockers.size > 0 && !this.#place;
        if (!mayBlock) leaveThread(wake);
        if (this.#place?.isOver) {
          if (this.#place.passTo(file)) return true;
          this.#leavePlace();
          dueAt = now + (patience *= 2); // others may get in again
        } else if (mayBlock && takeThread(wake)) {
          this.#awaited = file;
          if (await waitForFile(this.path, file)) return true;
        } else {
          if (hasSignals() && now >= Math.max(since + PATIENCE, dueAt)) {
            this.#place ??= quietly(() => new Place(this.path, wake));
            dueAt = now + 1000; // if none is free
          }
          const ms = this.#place?.stands ? 1000 : pauseAfter(now - since);
          await this.#pause(ms);
        }
      } while (this.#waiters.size > 0 && !tryFile(this.path, file));
      this.#leavePlace();
      return this.#waiters.size > 0;
    } finally {
      leaveThread(wake);
      this.#awaited = undefined;
    }
  }

  async #giveWay(): Promise<void> {
    while (this.#waiters.size > 0 && this.streak.owed > 0) {
      await this.#pause(Math.ceil(this.streak.owed));
    }
  }

  /** Ends early if woken, since something has changed. */
  async #pause(ms: number): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.wake = resolve;
    const timer = clock.setTimeout(resolve, ms);
    await promise;
    clock.clearTimeout(timer);
  }
}
