// The entry points of `@std/path` for every system read `globalThis.process`.
// Deno then loads `node:process`, which takes most of the start-up time.
import { fromFileUrl as posixFromFileUrl } from "@std/path/posix/from-file-url";
import { isAbsolute as posixIsAbsolute } from "@std/path/posix/is-absolute";
import { resolve as posixResolve } from "@std/path/posix/resolve";
import { fromFileUrl as windowsFromFileUrl } from "@std/path/windows/from-file-url";
import { isAbsolute as windowsIsAbsolute } from "@std/path/windows/is-absolute";
import { resolve as windowsResolve } from "@std/path/windows/resolve";

export const WINDOWS = Deno.build.os === "windows";

const fromFileUrl = WINDOWS ? windowsFromFileUrl : posixFromFileUrl;
const isAbsolute = WINDOWS ? windowsIsAbsolute : posixIsAbsolute;

/** Joins parts, of which the first is absolute. */
export const resolve = WINDOWS ? windowsResolve : posixResolve;

/** The parts that resolving takes out of an absolute POSIX path. */
const REDUNDANT = /\/\.{0,2}(\/|$)/;

/** The absolute path of a path or a file URL. */
export function toPath(path: string | URL): string {
  const local = path instanceof URL ? fromFileUrl(path) : path;
  // Without an absolute part, `resolve` reads `globalThis.process` too.
  if (!isAbsolute(local)) return resolve(Deno.cwd(), local);
  // A free lock would take a tenth longer if it resolved every path.
  return WINDOWS || REDUNDANT.test(local) ? resolve(local) : local;
}
