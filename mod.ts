/**
 * Opens `.cog/`, the state directory of a project of [Cog](https://cog.run), the
 * tool that packages machine-learning models in containers.
 *
 * Deno scripts and tests share the directory, and its lock, with `cog` commands.
 *
 * ```ts
 * import { open } from "@cog/dotcog";
 *
 * await using cog = await open("."); // ./.cog, created if missing
 * await cog.lock(); // waits for any other build; released when cog closes
 * const staging = await cog.tempPath("staging"); // empty, removed on close
 * await Deno.writeTextFile(`${staging}/artifact`, "built");
 * ```
 *
 * A test gets a project of its own:
 *
 * ```ts
 * import { open, openTemp } from "@cog/dotcog";
 * import { assertEquals } from "@std/assert/equals";
 *
 * async function build(project: string) {
 *   await using cog = await open(project);
 *   await Deno.writeTextFile(await cog.filePath("dist/artifact"), "built");
 * }
 *
 * Deno.test("build() writes its artifact", async () => {
 *   await using cog = await openTemp(); // deleted on close
 *   await build(cog.projectDir);
 *   const artifact = await cog.filePath("dist/artifact");
 *   assertEquals(await Deno.readTextFile(artifact), "built");
 * });
 * ```
 *
 * A script says that it waits, and gives up after a minute:
 *
 * ```ts
 * import { open } from "@cog/dotcog";
 *
 * await using cog = await open(".");
 * await cog.lock({
 *   signal: AbortSignal.timeout(60_000), // then rejects with a TimeoutError
 *   onWait: () => console.error("Waiting for another build"),
 * });
 * ```
 *
 * Five limits:
 *
 * - The lock is advisory: it stops only programs that ask for it.
 * - The lock is not reentrant: a script that holds it and calls `lock()` waits
 *   for itself. Deno may end the script with "Top-level await promise never
 *   resolved".
 * - Ctrl-C leaves the directories of `tempPath` and `openTemp`, unless the script
 *   handles the signal: `Deno.addSignalListener("SIGINT", () => Deno.exit(130))`.
 * - Deleting `.cog/cog.lock` while somebody holds the lock lets a new caller in.
 * - `cog` owns some names in `.cog/`: `mounts/`, `cache/weights_manifest.json`,
 *   `openapi_schema.json`, `weights.json`, and `build/`, which it removes without
 *   the lock.
 *
 * @module
 */

export { Dir, NAME, open, openTemp, type TempPathOptions } from "./dir.ts";
export { lock, type LockOptions, type Release, tryLock } from "./lock.ts";
