/**
 * The lock as one thread sees it. The callers of a thread need a queue of their
 * own: the operating system knows no order among those who try from time to
 * time, and a wait that stands in it occupies a thread of Deno's and cannot be
 * abandoned. So at most one wait for each path does, on behalf of all.
 */

import { quietly } from "../_error.ts";
import { toPath } from "../_path.ts";
import type { LockOptions, Release } from "../lock.ts";
import { onAbort } from "./abort.ts";
import { clock } from "./clock.ts";
import { Streak } from "./fairness.ts";
import { isCurrent, openFile, tryFile, tryOpen, waitForFile } from "./file.ts";
import { pauseAfter, tryBurst } from "./polling.ts";

/**
 * Acquires the lock. The abort of `owner` abandons the wait as that of the
 * signal does, but only the signal makes it poll.
 */
export async function acquire(
  path: string | URL,
  { signal, onWait }: LockOptions,
  owner?: AbortSignal,
): Promise<Release> {
  signal?.throwIfAborted();
  owner?.throwIfAborted();
  const mutex = mutexAt(toPath(path));
  const free = mutex.owesGap ? undefined : mutex.try(owner);
  const release = await (free ?? mutex.wait(onWait, signal, owner));
  return confirm(release, signal, owner);
}

/** Acquires the lock if it is free. */
export async function tryAcquire(
  path: string | URL,
  owner?: AbortSignal,
): Promise<Release | null> {
  owner?.throwIfAborted();
  const release = await mutexAt(toPath(path)).try(owner);
  return release ? confirm(release, owner) : null;
}

/** Undoes an acquisition that was abandoned before the caller heard of it. */
function confirm(
  release: Release,
  ...signals: (AbortSignal | undefined)[]
): Release {
  const aborted = signals.find((signal) => signal?.aborted);
  if (!aborted) return release;
  release();
  throw aborted.reason;
}

/** Releases the lock if the owner has it. */
export function releaseOf(owner: AbortSignal, path: string): void {
  mutexAt(toPath(path)).releaseOf(owner);
}

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

/**
 * The mutex of the path. A full table drops those that are idle, which is
 * cheaper than to do it at each release: V8 steps over all that it deletes.
 */
function mutexAt(path: string): Mutex {
  let mutex = mutexes.get(path);
  if (mutex) return mutex;
  if (mutexes.size >= capacity) {
    for (const [path, { isIdle }] of mutexes) {
      if (isIdle) mutexes.delete(path);
    }
    capacity = Math.max(2 * mutexes.size, 64);
  }
  mutexes.set(path, mutex = new Mutex(path));
  return mutex;
}

/**
 * How many waits may stand in the operating system at once. Each one occupies a
 * thread of the pool that all of Deno's file operations share. Before Deno 2.9.6
 * it has 32, and on Windows four for each core:
 * https://github.com/denoland/deno/issues/22504
 */
const MAX_BLOCKED = 2;
let blocked = 0;

/** The mutexes that poll since so many block already, in the order of asking. */
const seekers = new Set<Mutex>();

/** All that this thread does with the lock on one path. */
class Mutex {
  readonly #path: string;

  /** The locked file of the holder. */
  #held: Deno.FsFile | undefined;
  #owner: AbortSignal | undefined;
  readonly #streak = new Streak();

  /** In the order in which they asked. */
  readonly #waiters = new Set<Waiter>();
  /** Kept, with the last of its results: a new one steps over all who have left. */
  readonly #turns = this.#waiters.values();
  #turn: Waiter | undefined;
  /** The waiters without a signal, after their `onWait`. */
  readonly #blockers = new Set<Waiter>();

  #isServed = false;
  #gap: Promise<void> | undefined;
  /** Ends the pause, if any. */
  #wake = () => {};

  constructor(path: string) {
    this.#path = path;
  }

  get isIdle(): boolean {
    return !this.#held && this.#waiters.size === 0 && !this.#isServed &&
      this.#streak.isOver;
  }

  get owesGap(): boolean {
    return this.#streak.owed > 0;
  }

  /** Acquires the lock if nobody holds it and nobody in this thread waits for it. */
  try(owner: AbortSignal | undefined): Release | undefined {
    if (this.#held || this.#waiters.size > 0) return undefined;
    const file = tryOpen(this.#path);
    return file && this.#hold(file, owner);
  }

  /** Waits in the queue of this thread. */
  async wait(
    onWait: LockOptions["onWait"],
    signal: AbortSignal | undefined,
    owner: AbortSignal | undefined,
  ): Promise<Release> {
    const since = clock.now();
    const waiter: Waiter = { ...Promise.withResolvers(), since, owner };
    using listening = new DisposableStack();
    for (const it of [signal, owner]) {
      if (it) listening.use(onAbort(it, () => this.#fail(waiter, it.reason)));
    }
    this.#waiters.add(waiter);
    if (!this.#held && !this.#isServed) this.#serve();
    this.#announce(waiter, onWait, !signal);
    const release = await waiter.promise;
    if (!waiter.abandoned) return release;
    release();
    throw waiter.abandoned.reason;
  }

  releaseOf(owner: AbortSignal): void {
    if (this.#held && this.#owner === owner) this.#release(this.#held);
  }

  #hold(file: Deno.FsFile, owner: AbortSignal | undefined): Release {
    this.#held = file;
    this.#owner = owner;
    this.#streak.resume();
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
    this.#streak.pause();
    if (this.#isServed) this.#wake();
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
    this.#wake();
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
    this.#wake();
  }

  /** The first waiter. */
  get #first(): Waiter | undefined {
    if (this.#waiters.size === 0) return undefined;
    while (!this.#turn || !this.#waiters.has(this.#turn)) {
      this.#turn = this.#turns.next().value;
    }
    return this.#turn;
  }

  /** Gets the lock, and grants it to whoever is first by then. */
  async #serve(): Promise<void> {
    this.#isServed = true;
    if (this.owesGap) await (this.#gap = this.#giveWay());
    while (this.#waiters.size > 0 && !this.#held) {
      using opened = new DisposableStack();
      try {
        const file = opened.use(openFile(this.#path));
        if (!tryFile(this.#path, file) && !await this.#wait(file)) continue;
        if (!isCurrent(this.#path, file)) {
          await this.#pause(1); // some file systems show another file each time
          continue;
        }
        const first = this.#first;
        if (!first || this.#held) continue;
        opened.move();
        first.resolve(this.#hold(file, first.owner));
        this.#leave(first);
      } catch (error) {
        for (const waiter of this.#waiters) this.#fail(waiter, error);
      }
    }
    this.#isServed = false;
  }

  /** Waits until the file is locked, or until all have left: tells which. */
  async #wait(file: Deno.FsFile): Promise<boolean> {
    try {
      do {
        if (this.#mayBlock()) {
          if (await this.#block(file)) return true;
        } else {
          const waited = clock.now() - this.#first!.since;
          await this.#pause(pauseAfter(waited));
        }
        if (this.#waiters.size === 0) return false;
      } while (!tryBurst(() => tryFile(this.#path, file)));
      return true;
    } finally {
      seekers.delete(this);
    }
  }

  #mayBlock(): boolean {
    if (this.#blockers.size === 0) return false;
    if (blocked < MAX_BLOCKED) return true;
    seekers.add(this);
    return false;
  }

  async #block(file: Deno.FsFile): Promise<boolean> {
    blocked++;
    try {
      return await waitForFile(this.#path, file);
    } finally {
      blocked--;
      for (const seeker of seekers) {
        seekers.delete(seeker);
        if (seeker.#blockers.size === 0) continue;
        seeker.#wake();
        break;
      }
    }
  }

  async #giveWay(): Promise<void> {
    let left: number;
    while (this.#waiters.size > 0 && (left = this.#streak.owed) > 0) {
      await this.#pause(Math.ceil(left));
    }
  }

  /** Ends early if woken, since something has changed. */
  async #pause(ms: number): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#wake = resolve;
    const timer = clock.setTimeout(resolve, ms);
    await promise;
    clock.clearTimeout(timer);
  }
}
