/**
 * An exclusive lock on any file, which also excludes programs that use flock(2),
 * or LockFileEx on Windows.
 *
 * ```ts
 * import { lock } from "@cog/dotcog/lock";
 *
 * const path = await Deno.makeTempFile();
 * {
 *   using _lock = await lock(path, { onWait: () => console.log("Waiting") });
 *   // Nobody else holds the lock here.
 * }
 * await Deno.remove(path);
 * ```
 *
 * @module
 */

import { quietly } from "./_error.ts";
import { isCurrent, openFile, refused, tryFile } from "./_lock_file.ts";
import { toPath } from "./_path.ts";
import { beginSpan, isHeld, mustGiveWay } from "./_span.ts";

/** Options of {@linkcode lock}. */
export interface LockOptions {
  /**
   * The signal that abandons the wait.
   *
   * An aborted wait leaves nothing behind, and the script can exit.
   *
   * The operating system wakes a waiter without a signal as soon as the lock is
   * free. Nothing can cancel that wait, so a waiter with a signal polls: it tries
   * again after a fortieth of the time waited, 1 ms at least and 100 ms at most.
   * A poller may starve while others always wait without a signal. Callers in one
   * thread wait together: one without a signal speeds up all.
   */
  signal?: AbortSignal;

  /**
   * Called once, after `lock()` has returned its promise, if the caller must wait.
   *
   * It is the place to say what the program waits for. If it throws, `lock()`
   * rejects with that error.
   */
  onWait?: () => void;
}

/**
 * Releases a lock, by a call or by `using`.
 *
 * It returns at once and never throws. A second call does nothing. If it is
 * never called, the lock is held until the process or worker ends, however that
 * happens.
 */
export interface Release extends Disposable {
  /** Releases the lock. */
  (): void;
}

/**
 * Acquires the exclusive lock on a file, and waits until it is free.
 *
 * The file is created if missing, with default permissions. It is never written
 * to and never deleted. Its directory must exist.
 *
 * Callers in one thread, which is the main program or a worker, get the lock in
 * the order in which they asked. The operating system decides between threads
 * and processes. A thread that has held the lock for 100 ms without a gap leaves
 * it free to other programs for about 10 ms before its next caller gets it.
 *
 * If the lock file is deleted or replaced during the wait, the lock is on the
 * new file. Do not delete the file while somebody holds the lock: the next
 * caller creates a new file and locks that.
 *
 * The lock is advisory: it excludes only programs that ask for it. It is not
 * reentrant: a second call waits for the first one's release, even in the same
 * function.
 *
 * A wait without a signal may be granted while the event loop is busy. The lock
 * then stands idle until the loop turns. The operating system wakes the waiters
 * of at most two paths per thread at a time, and those of other paths poll. A
 * signal cannot interrupt a file system that hangs in a system call.
 *
 * On Windows nobody can read or write the file while it is locked.
 *
 * Requires `--allow-read` and `--allow-write` for the file, and for the target
 * of a symbolic link. Without `--allow-write` it locks only a file that exists.
 *
 * @param path The file to lock.
 * @param options The signal that abandons the wait, and a function to announce it.
 * @returns The release.
 *
 * @throws {TypeError} If `path` is a URL that is not a `file:` URL, or contains
 * a NUL.
 * @throws {Deno.errors.NotFound} If the directory of the file is missing.
 * @throws {Deno.errors.IsADirectory} If `path` is a directory. On Windows, a
 * platform-specific error.
 * @throws {Deno.errors.PermissionDenied} If the user may not open the file.
 * @throws {Deno.errors.NotCapable} If Deno lacks the permission.
 * @throws {Error} A platform-specific error if the file system has no locks or
 * the file cannot be opened for another reason.
 * @throws The signal's `reason`, if it is aborted before the lock is acquired.
 *
 * @example Usage
 * ```ts
 * import { lock } from "@cog/dotcog/lock";
 *
 * const path = await Deno.makeTempFile();
 * {
 *   using _lock = await lock(path, {
 *     signal: AbortSignal.timeout(60_000),
 *     onWait: () => console.log("Waiting for another build"),
 *   });
 *   // The lock is held to the end of this block.
 * }
 * await Deno.remove(path);
 * ```
 */
export async function lock(
  path: string | URL,
  options: LockOptions = {},
): Promise<Release> {
  const { signal } = options;
  signal?.throwIfAborted();
  const file = toPath(path);
  const taken = mustGiveWay(file) ? undefined : take(file);
  const release = await (taken ?? wait(file, options));
  if (!signal?.aborted) return release;
  release();
  throw signal.reason;
}

/**
 * Acquires the exclusive lock on a file if it is free, and never waits.
 *
 * Unlike {@linkcode lock}, it never gives way to other programs.
 *
 * Requires the permissions of {@linkcode lock}.
 *
 * @param path The file to lock.
 * @returns The release, or `null` if anybody holds the lock, if somebody in this
 * thread waits for it, or if the file is replaced at this moment.
 *
 * @throws The errors of {@linkcode lock}, except the signal's `reason`.
 *
 * @example Usage
 * ```ts
 * import { tryLock } from "@cog/dotcog/lock";
 * import { assertEquals } from "@std/assert/equals";
 *
 * const path = await Deno.makeTempFile();
 * {
 *   using _lock = await tryLock(path);
 *   assertEquals(await tryLock(path), null);
 * }
 * await Deno.remove(path);
 * ```
 */
// deno-lint-ignore require-await -- so that errors reject, as the signature says
export async function tryLock(path: string | URL): Promise<Release | null> {
  return take(toPath(path)) ?? null;
}

/** Takes the lock if nobody holds it and nobody in this thread waits for it. */
function take(path: string): Release | undefined {
  if (isHeld(path) || queues.has(path)) return undefined;
  const file = openFile(path);
  let taken = false;
  try {
    taken = tryFile(path, file) && isCurrent(path, file);
  } finally {
    if (!taken) file.close();
  }
  return taken ? hold(path, file) : undefined;
}

/** Holds the lock on the open file at the path until the release. */
function hold(path: string, file: Deno.FsFile): Release {
  const span = beginSpan(path);
  let held = true;
  const release: Release = () => {
    if (!held) return;
    held = false;
    // Closing frees it too, but on Windows that may take a while.
    quietly(() => file.unlockSync());
    file.close();
    span.until = performance.now();
    queues.get(path)?.serve();
  };
  release[Symbol.dispose] = release;
  return release;
}

/** Waits in the queue of this thread, which asks the operating system. */
async function wait(
  path: string,
  { signal, onWait }: LockOptions,
): Promise<Release> {
  const queue = queues.get(path) ?? new Queue(path);
  const waiter = { ...Promise.withResolvers<Release>(), onWait, signal };
  // A signal of its own, since removing one of many listeners takes long.
  const own = signal && AbortSignal.any([signal]);
  const abandon = () => queue.fail(waiter, own?.reason);
  own?.addEventListener("abort", abandon);
  queue.join(waiter);
  try {
    return await waiter.promise;
  } finally {
    own?.removeEventListener("abort", abandon);
  }
}

interface Waiter extends PromiseWithResolvers<Release>, LockOptions {}

/** The queues in which somebody waits, by path. */
const queues = new Map<string, Queue>();

/**
 * All callers of this thread who want the lock on one path. The wait belongs
 * to the queue, which gives the lock to the first.
 */
class Queue {
  readonly #path: string;
  /** In the order in which they asked. */
  readonly #waiters = new Set<Waiter>();
  /** Kept, since a new iterator steps over all who have left. */
  readonly #turns = this.#waiters.values();
  /** The waiters without a signal, after their `onWait`. */
  readonly #patient = new Set<Waiter>();
  /** Ends the pause, if any. */
  #wake = () => {};
  #gaveWay: Promise<void> | undefined;

  constructor(path: string) {
    this.#path = path;
    queues.set(path, this);
  }

  join(waiter: Waiter): void {
    this.#waiters.add(waiter);
    if (this.#waiters.size === 1 && !isHeld(this.#path)) this.serve();
    this.#announce(waiter);
  }

  fail(waiter: Waiter, reason: unknown): void {
    this.#leave(waiter);
    waiter.reject(reason);
  }

  #leave(waiter: Waiter): void {
    if (!this.#waiters.delete(waiter)) return;
    this.#patient.delete(waiter);
    this.#wake();
    if (this.#waiters.size === 0) queues.delete(this.#path);
  }

  /** Calls `onWait`, unless the wait was only to give way and is over. */
  async #announce(waiter: Waiter): Promise<void> {
    await this.#gaveWay;
    if (!this.#waiters.has(waiter)) return;
    try {
      waiter.onWait?.();
    } catch (error) {
      this.fail(waiter, error);
    }
    if (waiter.signal || !this.#waiters.has(waiter)) return;
    this.#patient.add(waiter);
    this.#wake();
  }

  /** Gets the lock, and grants it to whoever is first by then. */
  async serve(): Promise<void> {
    if (mustGiveWay(this.#path)) await (this.#gaveWay = this.#giveWay());
    while (this.#waiters.size > 0) {
      using opened = new DisposableStack();
      try {
        const file = opened.use(openFile(this.#path));
        if (!tryFile(this.#path, file)) await this.#wait(file);
        if (!isCurrent(this.#path, file)) {
          await this.#pause(1); // some file systems show another file each time
          continue;
        }
        const first = this.#turns.next().value;
        if (!first) return; // all have left
        opened.move();
        first.resolve(hold(this.#path, file));
        return this.#leave(first);
      } catch (error) {
        for (const waiter of this.#waiters) this.fail(waiter, error);
      }
    }
  }

  /** Waits for the lock while anybody here wants it. */
  async #wait(file: Deno.FsFile): Promise<void> {
    const start = performance.now();
    do {
      if (this.#patient.size > 0 && blocked < MAX_BLOCKED) {
        return await this.#block(file);
      }
      // A freed lock stands idle for at most a fortieth of the wait, or 1 ms.
      const waited = performance.now() - start;
      await this.#pause(Math.min(Math.max(waited / 40, 1), 100));
    } while (this.#waiters.size > 0 && !tryFile(this.#path, file));
  }

  /**
   * Waits in the operating system, which wakes its waiters at once and in turn.
   * Deno cannot cancel that wait, not even by closing the file:
   * https://github.com/denoland/deno/issues/31342
   */
  async #block(file: Deno.FsFile): Promise<void> {
    blocked++;
    try {
      await file.lock(true);
    } catch (error) {
      throw refused(this.#path, error);
    } finally {
      blocked--;
      for (const queue of queues.values()) queue.#wake();
    }
  }

  /** For a random time, to fall out of step with others' regular tries. */
  async #giveWay(): Promise<void> {
    let left = 5 + Math.trunc(11 * Math.random());
    const end = performance.now() + left;
    while (this.#waiters.size > 0 && left > 0) {
      await this.#pause(left);
      left = end - performance.now();
    }
  }

  /** Ends early if woken, since something has changed. */
  async #pause(ms: number): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#wake = resolve;
    const timer = setTimeout(resolve, ms);
    await promise;
    clearTimeout(timer);
  }
}

/**
 * How many waits may stand in the operating system at once. Each one occupies a
 * thread of the pool that all of Deno's file operations share. Before Deno 2.9.6
 * it has 32, and on Windows four for each core:
 * https://github.com/denoland/deno/issues/22504
 */
const MAX_BLOCKED = 2;
let blocked = 0;
