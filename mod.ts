/**
 * Opens the state directory `.cog/` of a Cog project, for Deno scripts and tests
 * that run alongside `cog` commands.
 *
 * `.cog/` holds staged builds, weight caches, mounts, and the lock that the whole
 * project shares.
 *
 * ```ts
 * import { open } from "@cog/dotcog";
 *
 * await using cog = await open("."); // ./.cog, created if missing
 * await cog.lock(); // waits for any other build; released when cog closes
 * const staging = await cog.tempPath("staging"); // empty, removed on close
 * await Deno.writeTextFile(`${staging}/artifact`, "staged");
 * ```
 *
 * A test gets a `.cog/` of its own in a temporary directory:
 *
 * ```ts
 * import { openTemp } from "@cog/dotcog";
 *
 * Deno.test("a build writes its artifact", async () => {
 *   await using cog = await openTemp(); // deleted on close
 *   const staging = await cog.tempPath("staging");
 *   await Deno.writeTextFile(`${staging}/artifact`, "");
 * });
 * ```
 *
 * A script says what it waits for, and gives up after a minute:
 *
 * ```ts
 * import { open } from "@cog/dotcog";
 *
 * await using cog = await open(".");
 * await cog.lock({
 *   signal: AbortSignal.timeout(60_000), // then rejects with a TimeoutError
 *   onWait: () => console.log("Waiting for another build"),
 * });
 * ```
 *
 * @module
 */

export { Dir, NAME, open, openTemp, type TempPathOptions } from "./dir.ts";
export { lock, type LockOptions, type Release, tryLock } from "./lock.ts";
