import { explain, quietly } from "../_error.ts";
import { isSame, parentOf, peek } from "../_path.ts";

/** The locked file at the path, or `undefined` if somebody else has the lock. */
export function tryOpen(path: string, create = true): Deno.FsFile | undefined {
  const file = openFile(path, create);
  let locked = false;
  try {
    locked = tryFile(path, file) && isCurrent(path, file);
  } finally {
    if (!locked) file.close();
  }
  return locked ? file : undefined;
}

/**
 * Opens the file for writing too, though nothing is ever written: NFSv4 refuses
 * an exclusive lock on a file that is open for reading only.
 */
export function openFile(path: string, create = true): Deno.FsFile {
  try {
    return Deno.openSync(path, { read: true, write: true, create });
  } catch (error) {
    // Opening a pipe for reading only would wait for somebody to write to it.
    const readable = peek(path)?.isFile && quietly(() => Deno.openSync(path));
    if (readable) return readable;
    throw explain(`Cannot lock ${path}${adviceFor(path, error)}`, error);
  }
}

/** Locks the open file if it is free. */
export function tryFile(path: string, file: Deno.FsFile): boolean {
  try {
    return file.tryLockSync(true);
  } catch (error) {
    if (error instanceof Deno.errors.Interrupted) return tryFile(path, file);
    throw refusedBySystem(path, error);
  }
}

/**
 * Waits in the operating system, which wakes its waiters at once and in turn.
 * Deno cannot cancel that wait, not even by closing the file:
 * https://github.com/denoland/deno/issues/31342
 * It tells whether the file is locked, or else a signal interrupted the wait.
 */
export async function waitForFile(
  path: string,
  file: Deno.FsFile,
): Promise<boolean> {
  try {
    await file.lock(true);
    return true;
  } catch (error) {
    if (error instanceof Deno.errors.Interrupted) return false;
    throw refusedBySystem(path, error);
  }
}

/**
 * Whether the open `file` is the one at the path: flock(2) also locks a file
 * that was deleted or replaced before, where nobody else looks for it.
 */
export function isCurrent(path: string, file: Deno.FsFile): boolean {
  try {
    const open = file.statSync();
    const there = Deno.statSync(path);
    // No other file gets the number of an open one. Without exact numbers, a
    // new file can even have the birth time of the one just deleted.
    return isSame(open, there) && (Number.isSafeInteger(open.ino) ||
      open.mtime?.getTime() === there.mtime?.getTime());
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
    throw explain(`Cannot lock ${path}`, error);
  }
}

/** Some file systems have no locks, and answer with one of many errors. */
function refusedBySystem(path: string, error: unknown): Error {
  const advice =
    "its file system refuses the lock; a file on another one may work";
  return explain(`Cannot lock ${path}: ${advice}`, error);
}

/** What to do about a file that cannot be opened. */
function adviceFor(path: string, error: unknown): string {
  const found = peek(path, Deno.lstatSync);
  const target = peek(path);
  if (target?.isDirectory) return ": it is a directory; name a file in it";
  if (error instanceof Deno.errors.PermissionDenied) {
    if (!found) return ": allow writing to its directory";
    const also = target?.isFile === false ? "and writing " : "";
    return `: allow reading ${also}it`;
  }
  if (!(error instanceof Deno.errors.NotFound)) return "";
  if (found?.isSymlink) {
    return ": it is a symbolic link to a missing file; create that first";
  }
  return peek(parentOf(path))
    ? ""
    : ": its directory is missing; create it first";
}
