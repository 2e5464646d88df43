// The entry points of `@std/path` for every system read `globalThis.process`.
// Deno then loads `node:process`, which takes most of the start-up time.
import { fromFileUrl as posixFromFileUrl } from "@std/path/posix/from-file-url";
import { normalize as posixNormalize } from "@std/path/posix/normalize";
import { fromFileUrl as windowsFromFileUrl } from "@std/path/windows/from-file-url";
import { resolve as windowsResolve } from "@std/path/windows/resolve";
import { explain, isGone, quietly, quote } from "./_error.ts";

export const WINDOWS = Deno.build.os === "windows";

const fromFileUrl = WINDOWS ? windowsFromFileUrl : posixFromFileUrl;

/**
 * The absolute path of a path or a file URL. Only Windows resolves `..` in the
 * text. Elsewhere `link/..` is the directory that contains the target of the
 * link, so it stays.
 */
export function toPath(path: string | URL): string {
  const isUrl = path instanceof URL && path.protocol === "file:";
  const local = isUrl ? fromFileUrl(path) : path as string;
  const reason = objection(local);
  if (reason) {
    throw new TypeError(`Cannot take the path ${quote(path)}: ${reason}`);
  }
  if (WINDOWS) return windowsResolve(workingDirectory(local), local);
  return tidy(
    local.startsWith("/") ? local : `${workingDirectory(local)}/${local}`,
  );
}

/** Why a path is refused, or `undefined`. Untyped code may pass anything. */
function objection(path: unknown): string | undefined {
  if (typeof path !== "string") return "it must be a string or a file: URL";
  if (path === "") return 'it is empty; the working directory is "."';
  if (path.includes("\0")) return "no path can contain a NUL";
  if (/^(file:|\w{2,}:\/\/)/i.test(path)) {
    return "it is a URL in a string; pass a URL object";
  }
  return undefined;
}

/** The path of what has the relative name in a directory. */
export function joinName(directory: string, name: string): string {
  return WINDOWS
    ? windowsResolve(directory, name)
    : tidy(`${directory}/${posixNormalize(name)}`);
}

/** The directory that contains what is at an absolute path. */
export function parentOf(path: string): string {
  return WINDOWS
    ? windowsResolve(path, "..")
    : path.slice(0, path.lastIndexOf("/")) || "/";
}

/**
 * Whether both are of one file or directory, and the open one is not deleted. The
 * birth time tells them apart where inode numbers are missing, rounded or reused.
 */
export function isSame(open: Deno.FileInfo, other: Deno.FileInfo): boolean {
  return open.nlink !== 0 && open.dev === other.dev && open.ino === other.ino &&
    open.birthtime?.getTime() === other.birthtime?.getTime();
}

/**
 * Whether both may be of one directory that nobody keeps open: its inode number may
 * change on an overlay and on FUSE, its birth time on macOS. Where no birth time
 * exists, this only excludes other disks.
 */
export function isAlike(one: Deno.FileInfo, other: Deno.FileInfo): boolean {
  return one.dev === other.dev && (one.ino === other.ino ||
    one.birthtime?.getTime() === other.birthtime?.getTime());
}

/** What has the path, or `undefined` if it is gone. */
export function look(path: string, stat = () => Deno.lstatSync(path)) {
  try {
    return stat();
  } catch (error) {
    if (isGone(error)) return undefined;
    throw error;
  }
}

/** The file at a path, if Deno may look without asking the user. */
export function peek(
  path: string,
  stat = Deno.statSync,
): Deno.FileInfo | undefined {
  const { state } = Deno.permissions.querySync({ name: "read", path });
  return state === "granted" ? quietly(() => stat(path)) : undefined;
}

/** The obstacle to a directory and the remedy, or `""`. */
export function obstacleTo(path: string): string {
  const found = peek(path);
  if (found?.isDirectory) return "";
  if (found) {
    return `: a file has the name ${path}; move it away, or pass another path`;
  }
  if (peek(path, Deno.lstatSync)) {
    return `: ${path} is a symbolic link, and its target is missing or out of ` +
      `reach; create the target, or move the link away`;
  }
  const parent = parentOf(path);
  return parent === path ? "" : obstacleTo(parent);
}

/** Leaves out `.` and empty parts of an absolute path. */
function tidy(path: string): string {
  return path.replace(/(\/\.?)+(?=\/|$)/g, "") || "/";
}

function workingDirectory(path: string): string {
  try {
    return Deno.cwd();
  } catch (error) {
    const advice = error instanceof Deno.errors.NotFound
      ? ": the working directory is missing; use an absolute path"
      : "";
    throw explain(`Cannot resolve "${path}"${advice}`, error);
  }
}
