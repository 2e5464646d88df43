/**
 * Work with `.cog/`, the state directory of a [Cog](https://cog.run) project,
 * from Deno: safe paths, scratch that removes itself, and the lock that
 * `cog build` takes.
 *
 * ```ts
 * // build.ts
 * import { open } from "@cog/dotcog";
 *
 * await using cog = await open("."); // ./.cog, created if missing
 * await cog.lock(); // waits for any other build; released at the end
 * const staging = await cog.tempPath("staging"); // scratch, removed at the end
 * await Deno.writeTextFile(`${staging}/report`, "built\n");
 * const report = await cog.filePath("reports/latest"); // creates reports/
 * await Deno.rename(`${staging}/report`, report); // in one step
 * console.log(`Built ${report}`);
 * // await cog.filePath("../x"); // TypeError: … the name "../x" leads outside
 * ```
 *
 * ```sh
 * deno run --allow-read=. --allow-write=. build.ts
 * ```
 *
 * The [README](https://jsr.io/@cog/dotcog) has recipes, and the limits of the
 * lock.
 *
 * @module
 */

export { Dir, NAME, open, openTemp, type TempPathOptions } from "./dir.ts";
export { lock, type LockOptions, type Release, tryLock } from "./lock.ts";
