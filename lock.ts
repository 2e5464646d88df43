/**
 * An exclusive lock on any file. It also excludes programs that use flock(2), or
 * LockFileEx on Windows.
 *
 * ```ts
 * import { lock } from "@cog/dotcog/lock";
 *
 * const path = await Deno.makeTempFile();
 * {
 *   using _lock = await lock(path, { onWait: () => console.error("Waiting") });
 *   // Nobody else holds the lock here.
 * }
 * await Deno.remove(path);
 * ```
 *
 * @module
 */

import { acquire, tryAcquire } from "./_lock/mutex.ts";

/** Options of {@linkcode lock}. */
export interface LockOptions {
  /**
   * The `AbortSignal` that abandons the wait. `Promise.race` with a timer does
   * not abandon it.
   *
   * A wait without an `AbortSignal` stands in the operating system's queue from
   * the start. Nothing can cancel that. A wait with an `AbortSignal` first
   * polls: it tries again after pauses of 1 ms, later of up to a fortieth of
   * the time waited. After 200 ms a worker waits in the queue, for all callers
   * in this thread that wait for the path, unless a caller without an
   * `AbortSignal` already does. The start of the worker blocks the event loop
   * for about 20 ms, and for longer on a busy machine. The worker takes four
   * threads, ten open files and some 20 MB of memory, but no processor time
   * while it waits.
   *
   * The abort of the last wait ends the worker, and the script can exit. Until
   * the lock is free or the script exits, a thread and up to two open files may
   * stay. On a FUSE file system, the process stays until the lock is free, even
   * at Ctrl-C or `Deno.exit()`. An abort just as the turn comes may leave the
   * lock busy for some milliseconds.
   *
   * The wait only polls, and may starve, in these cases: on Windows; if too few
   * files can be opened; if this thread has eight places in queues, abandoned
   * ones included; if two places for the path were abandoned in the last five
   * seconds. It also polls for a while if, just as the turn comes, this thread
   * is busy for 100 ms, or another program shares the lock, as `flock --shared`
   * does.
   */
  signal?: AbortSignal;

  /**
   * Called once, after `lock()` has returned its promise, if the caller must wait.
   *
   * It is the place to say what the program waits for. If it throws, `lock()`
   * rejects with that error, unless the `AbortSignal` is aborted first. If it
   * returns a promise, nobody awaits that promise.
   */
  onWait?: () => void;
}

/**
 * Releases a lock, by a call or by `using`.
 *
 * It returns at once and never throws. A second call does nothing. Without a
 * call, the lock is held until the process or worker ends, however that
 * happens, or until the handle of `Dir.lock` closes.
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
 * Callers in one thread get the lock in the order in which they asked, if all
 * pass the same text for the path. Otherwise, and between threads and processes,
 * the operating system decides. A thread is the main program or a worker. If it
 * holds the lock for 100 ms or more, through one caller or several, it then leaves
 * the lock free for other programs. The gap lasts for 5 to 15 % of the time held,
 * and for 110 ms at most.
 *
 * If the lock file is deleted or replaced during the wait, the waiter first
 * waits until the old file is free, then acquires the lock on the new one. Do
 * not delete the file while somebody holds the lock: the next caller creates a
 * new file and locks that.
 *
 * The lock is advisory: it excludes only programs that ask for it. It is not
 * reentrant: a second call waits for the first one's release, even in the same
 * function.
 *
 * A waiter may get the lock while other code keeps the event loop busy. The
 * lock is then held, but unused, until that code yields. The worker of a wait
 * with an `AbortSignal` frees it after 100 ms. Waits without an `AbortSignal`
 * use the queue for at most two paths per thread. For further paths, they poll.
 * Each path for which somebody waits keeps a file open, besides those of a
 * worker. An `AbortSignal` cannot interrupt a system call that hangs in the
 * file system.
 *
 * Acquiring a free lock lets no timer run. So a loop of short holds delays
 * timers, those of `AbortSignal.timeout()` too.
 *
 * On Windows nobody can read or write the file while it is locked.
 *
 * Requires `--allow-read` and `--allow-write` for the file, and for the target
 * of a symbolic link. A file that exists needs only `--allow-read`, but on a
 * terminal Deno asks for `--allow-write` too.
 *
 * @param path The file to lock. After a symbolic link, `..` leads to the parent
 * of the link's target. On Windows, it leads to the parent of the link.
 * @param options The `AbortSignal` that abandons the wait, and a function that
 * announces it.
 * @returns A function that releases the lock; also works with `using`.
 *
 * @throws {TypeError} If `path` is neither a path nor a `file:` URL, is empty
 * or a URL in a string, or contains a NUL. Or if `options` is not an object, or
 * is an `AbortSignal`.
 * @throws {Deno.errors.NotFound} If the directory of the file is missing, or if
 * `path` is relative and the working directory was deleted.
 * @throws {Deno.errors.IsADirectory} If `path` is a directory. On Windows, a
 * platform-specific error.
 * @throws {Deno.errors.PermissionDenied} If the user may not open the file.
 * @throws {Deno.errors.NotCapable} If Deno lacks the permission.
 * @throws {Error} A platform-specific error if the file system has no locks or
 * the file cannot be opened for another reason.
 * @throws The `reason` of the `AbortSignal`, if it is aborted before the lock
 * is acquired.
 *
 * @example Usage
 * ```ts
 * import { lock } from "@cog/dotcog/lock";
 *
 * const path = await Deno.makeTempFile();
 * {
 *   using _lock = await lock(path, {
 *     signal: AbortSignal.timeout(60_000),
 *     onWait: () => console.error("Waiting for another build"),
 *   });
 *   // The lock is held to the end of this block.
 * }
 * await Deno.remove(path);
 * ```
 */
export function lock(
  path: string | URL,
  options?: LockOptions,
): Promise<Release> {
  return acquire(path, options);
}

/**
 * Acquires the exclusive lock on a file if it is free, and never waits.
 *
 * Unlike {@linkcode lock}, it never gives way to other programs.
 *
 * Requires the permissions of {@linkcode lock}.
 *
 * @param path The file to lock.
 * @returns The release, or `null` if anybody holds the lock, if somebody in
 * this thread waits for it, or if the file is replaced during the call.
 *
 * @throws The errors of {@linkcode lock}, except the `reason` of an
 * `AbortSignal`.
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
export function tryLock(path: string | URL): Promise<Release | null> {
  return tryAcquire(path);
}
