/**
 * The local state directory `.cog/` of a Cog project, for Deno scripts and
 * `deno test` fixtures that work in it beside running `cog` commands: paths
 * inside it, scratch directories that clean up after themselves, and the lock
 * that the whole project shares.
 *
 * ```ts
 * import { open } from "@cog/dotcog";
 *
 * await using cog = await open(".");
 * await cog.lock(); // until cog closes
 * const build = await cog.tempPath("build");
 * await Deno.writeTextFile(`${build}/artifact`, "staged");
 * ```
 *
 * @module
 */

export { Dir, NAME, open, openTemp } from "./dir.ts";
export { lock, type LockOptions, type Release, tryLock } from "./lock.ts";
