import { explained, quietly } from "./_error.ts";
import { isSame } from "./_identity.ts";
import { resolve } from "./_path.ts";

/** Locks the open file if it is free. */
export function tryFile(path: string, file: Deno.FsFile): boolean {
  try {
    return file.tryLockSync(true);
  } catch (error) {
    throw refused(path, error);
  }
}

/**
 * Opens the file for writing too, though nothing is ever written: NFSv4 refuses
 * an exclusive lock on a file that is open for reading only.
 */
export function openFile(path: string): Deno.FsFile {
  try {
    return Deno.openSync(path, { read: true, write: true, create: true });
  } catch (error) {
    // Opening a pipe for reading only would wait for somebody to write to it.
    const readable = quietly(() => Deno.statSync(path))?.isFile &&
      quietly(() => Deno.openSync(path));
    if (readable) return readable;
    throw refused(path, error);
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
    throw refused(path, error);
  }
}

/** The same class of error, with the path and what to do. */
export function refused(path: string, error: unknown): Error {
  const advice = advise(path, error);
  return explained(`Cannot lock ${path}${advice && `: ${advice}`}`, error);
}

function advise(path: string, error: unknown): string {
  const found = quietly(() => Deno.lstatSync(path));
  const target = quietly(() => Deno.statSync(path));
  if (target?.isDirectory) return "it is a directory; name a file in it";
  if (error instanceof TypeError) return "no path can contain a NUL";
  if (error instanceof Deno.errors.PermissionDenied) {
    return found ? "allow reading it" : "allow writing to its directory";
  }
  if (!(error instanceof Deno.errors.NotFound)) return "";
  if (found?.isSymlink) {
    return "it is a symbolic link into a missing directory; create that first";
  }
  const parent = quietly(() => Deno.statSync(resolve(path, "..")));
  return parent ? "" : "its directory is missing; create it first";
}
