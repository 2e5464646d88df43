/**
 * An exclusive lock on a file, for any file: flock(2), or LockFileEx on
 * Windows, so that it excludes every other program that uses those on the same
 * file, `flock(1)`, Python's `fcntl.flock` and Go among them.
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

import { abortable } from "@std/async/abortable";
import { delay } from "@std/async/delay";
import { fromFileUrl } from "@std/path/from-file-url";
import { resolve } from "@std/path/resolve";

/** How {@linkcode lock} waits. */
export interface LockOptions {
  /**
   * Abandons the wait when it is aborted. Nothing of the wait is left behind,
   * and nothing stays attached to the signal once the lock is acquired.
   *
   * With a signal, a wait for another process is polled, because a wait in the
   * operating system cannot be abandoned: it asks again after a fortieth of the
   * time waited so far, but after 1 ms at least and 100 ms at most. So it has no
   * place in the system's queue: beside processes that wait there and leave no
   * pause between them, it may wait for long.
   */
  signal?: AbortSignal;

  /**
   * Called once, before the wait, if the lock was not free at once: the place
   * to tell the user what the program is waiting for.
   */
  onWait?: () => void;
}

/**
 * Releases a lock: call it, or hold it with `using`. It returns at once, never
 * throws, and does nothing from the second time on.
 *
 * A release that is dropped without being called leaves the lock held until
 * the process ends; the end of the process frees it, however it comes about.
 */
export interface Release extends Disposable {
  /** Releases the lock. */
  (): void;
}

/**
 * Acquires the exclusive lock on a file, waiting for as long as it takes. The
 * file is created if it is missing, as the umask says, and stays; it is never
 * written to. Its directory must exist.
 *
 * After a wait the lock is certain to be on the file that is at the path then,
 * also where that was deleted or replaced meanwhile. Deleting the file while
 * somebody holds the lock is not safe: the holder cannot be told, and the next
 * process makes a new file and locks that.
 *
 * Callers in one thread get the lock in the order in which they asked for the
 * same path; between others the operating system decides, unless the wait is
 * polled: with a {@linkcode LockOptions.signal}, or beside two other waits of
 * this process. A process whose own callers queue without a gap may keep others
 * waiting meanwhile.
 *
 * The lock is advisory: it excludes only those who ask for it. (On Windows,
 * nobody can read or write the file while it is locked, though.) Holding it
 * twice is not possible, not even in one process: the second call waits for
 * the first one's release.
 *
 * Requires `--allow-read` and `--allow-write` for the file, and where it really
 * is if the path leads there by a symbolic link. With no more than
 * `--allow-read`, or on a file that may not be written, it locks what exists.
 *
 * @param path The file to lock.
 * @param options The signal that abandons the wait, and whom to tell of it.
 * @returns The release.
 *
 * @throws {TypeError} If `path` is a URL of another scheme than `file:` or has
 * a NUL in it.
 * @throws {Deno.errors.NotFound} If the directory of the file is missing, or
 * is deleted while this waits.
 * @throws {Deno.errors.IsADirectory} If `path` is a directory; on Windows it
 * is whatever error the platform has for that.
 * @throws {Deno.errors.PermissionDenied} If the file may not be opened, and
 * {@linkcode Deno.errors.NotCapable} if Deno may not; a file system without
 * locks gives whatever error the platform has for it.
 * @throws The signal's own `reason`, once the signal is aborted.
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
  const { signal, onWait, closing }: Wait = options;
  signal?.throwIfAborted();
  let told = false;
  const begin = () => {
    if (!told) onWait?.();
    told = true;
    // Only for a wait: Deno 2.7 never forgets a signal that was made so.
    return signal && closing
      ? AbortSignal.any([signal, closing])
      : signal ?? closing;
  };
  const release = await acquire(toPath(path), begin, signal ? poll : block);
  if (!signal?.aborted) return release!; // never null where it may wait
  release!();
  throw signal.reason;
}

/**
 * Acquires the exclusive lock on a file if it is free, as {@linkcode lock}
 * does, and never waits.
 *
 * Requires `--allow-read` and `--allow-write` for the file, as {@linkcode lock}.
 *
 * @param path The file to lock.
 * @returns The release, or `null` if anybody holds the lock, if somebody in this
 * thread waits for it, or if the file is replaced just then.
 *
 * @throws What {@linkcode lock} throws where it cannot lock at all.
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
export async function tryLock(path: string | URL): Promise<Release | null> {
  return await acquire(toPath(path));
}

/** What another module of this package may pass besides. */
interface Wait extends LockOptions {
  /** Ends the wait as `signal` does, but does not make it a polled one. */
  closing?: AbortSignal;
}

/** Called before each wait: tells of the first one, and gives what may end it. */
type Begin = () => AbortSignal | undefined;

/**
 * The one way to the lock: in turn among those of this process, then among all.
 * Without a `begin` it never waits, and gives `null` where the lock is taken.
 */
async function acquire(
  name: string,
  begin?: Begin,
  wait = poll,
): Promise<Release | null> {
  if (!await enter(name, begin)) return null;
  using entered = new DisposableStack();
  entered.defer(() => leave(name));
  // The pause is for file systems that give a file another number each time.
  for (;; await delay(1, { signal: begin?.() })) {
    using opened = new DisposableStack();
    const file = opened.use(openFile(name));
    if (!tryFile(name, file)) {
      if (!begin) return null;
      await wait(name, file, begin());
    }
    // flock(2) also locks a file that was deleted or replaced before it was
    // locked, where nobody else will look for it.
    if (!isAt(name, file)) {
      if (!begin) return null;
      continue;
    }
    // Closing frees it too, but Windows may take its time then.
    opened.defer(() => quietly(() => file.unlockSync()));
    entered.use(opened.move());
    const held = entered.move();
    const release = () => held.dispose();
    return Object.assign(release, { [Symbol.dispose]: release });
  }
}

/**
 * A path is here while somebody in this process holds its lock or is the one
 * who asks the operating system for it; the others wait in the queue, in order.
 */
const queues = new Map<string, Array<() => void>>();

/**
 * Waits to be the one of this process who asks the operating system. Without a
 * `begin` it does not wait, and says whether it is the one.
 */
async function enter(name: string, begin?: Begin): Promise<boolean> {
  const queue = queues.get(name);
  if (!queue) {
    queues.set(name, []);
    return true;
  }
  if (!begin) return false;
  const { promise: turn, resolve: call } = Promise.withResolvers<void>();
  queue.push(call);
  try {
    const end = begin();
    await (end ? abortable(turn, end) : turn);
    end?.throwIfAborted();
    return true;
  } catch (error) {
    const place = queue.indexOf(call);
    if (place >= 0) queue.splice(place, 1);
    else leave(name); // called and aborted in one go: the next one's turn
    throw error;
  }
}

/** Lets the next one of this process ask. */
function leave(name: string): void {
  const call = queues.get(name)?.shift();
  if (call) call();
  else queues.delete(name);
}

/**
 * How many waits may stand in the operating system at once. Each one occupies a
 * thread of the pool that all of Deno's file operations share. Before Deno 2.9.6
 * it has 32, and on Windows four for each core:
 * https://github.com/denoland/deno/issues/22504
 */
const MAX_BLOCKED = 2;
let blocked = 0;

/**
 * Waits in the operating system, which wakes its waiters at once and in turn.
 * But Deno cannot cancel that wait, not even by closing the file
 * (https://github.com/denoland/deno/issues/31342): after `end` it goes on alone,
 * keeps the process alive until the others let go, and then has the lock until
 * the event loop turns. So a wait that the caller may abandon is polled instead.
 */
async function block(
  name: string,
  file: Deno.FsFile,
  end: AbortSignal | undefined,
): Promise<void> {
  if (blocked >= MAX_BLOCKED) return await poll(name, file, end);
  end?.throwIfAborted(); // onWait may have aborted it
  blocked++;
  const locked = file.lock(true).finally(() => blocked--);
  try {
    await (end ? abortable(locked, end) : locked);
  } catch (error) {
    throw end?.aborted ? error : refused(name, error);
  }
}

/**
 * Asks less often the longer it waits: so a freed lock stands idle for at most a
 * fortieth of the wait (or 1 ms), and ten seconds of waiting take less than a
 * hundredth of one core's time.
 */
async function poll(
  name: string,
  file: Deno.FsFile,
  end: AbortSignal | undefined,
): Promise<void> {
  const start = performance.now();
  do {
    const waited = performance.now() - start;
    await delay(Math.min(Math.max(waited / 40, 1), 100), { signal: end });
  } while (!tryFile(name, file));
}

function tryFile(name: string, file: Deno.FsFile): boolean {
  try {
    return file.tryLockSync(true);
  } catch (error) {
    throw refused(name, error);
  }
}

/**
 * Opens the file for writing too, though nothing is ever written: NFSv4 refuses
 * an exclusive lock on a file that is open for reading only.
 */
function openFile(name: string): Deno.FsFile {
  try {
    return Deno.openSync(name, { read: true, write: true, create: true });
  } catch (error) {
    // Opening a pipe for reading only would wait for somebody to write to it.
    const readable = quietly(() => Deno.statSync(name))?.isFile &&
      quietly(() => Deno.openSync(name));
    if (readable) return readable;
    throw refused(name, error);
  }
}

/** Whether the open `file` is the one that is at the path now. */
function isAt(name: string, file: Deno.FsFile): boolean {
  // No other file gets the inode number of an open one. Where Deno rounds it or
  // has none, as on Windows, a new file may inherit the birth time of the one
  // just deleted, but not the time of its last write.
  const mark = ({ dev, ino, birthtime, mtime }: Deno.FileInfo) =>
    Number.isSafeInteger(ino)
      ? `${dev} ${ino}`
      : `${dev} ${ino} ${birthtime?.getTime()} ${mtime?.getTime()}`;
  try {
    return mark(file.statSync()) === mark(Deno.statSync(name));
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
    throw refused(name, error);
  }
}

/** The same class of error, saying what was tried and what to do. */
function refused(name: string, error: unknown): Error {
  const { constructor, message } = error as Error;
  const advice = error instanceof Deno.errors.NotFound
    ? "its directory is missing, or was deleted meanwhile: make it first"
    : quietly(() => Deno.statSync(name))?.isDirectory
    ? "it is a directory: name a file in it"
    : error instanceof TypeError
    ? "no file can have such a name"
    : "it must be a file that may be opened, where the file system has locks";
  return new (constructor as ErrorConstructor)(
    `Cannot lock ${name}: ${advice}: ${message}`,
    { cause: error },
  );
}

function toPath(path: string | URL): string {
  return resolve(path instanceof URL ? fromFileUrl(path) : path);
}

function quietly<T>(attempt: () => T): T | undefined {
  try {
    return attempt();
  } catch {
    return undefined;
  }
}
