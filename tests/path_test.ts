/** What a path or a URL means, to every function that takes one. */

import { assert } from "@std/assert/assert";
import { assertEquals } from "@std/assert/equals";
import { assertRejects } from "@std/assert/rejects";
import { resolve } from "@std/path/resolve";
import { open } from "../dir.ts";
import { lock, tryLock } from "../lock.ts";
import { CAN_LINK, exists, isFree, scene, script, WINDOWS } from "./support.ts";

/** Each creates something at the path that it takes. */
const TAKERS = {
  "lock()": async (path: string | URL) => void (await lock(path))(),
  "tryLock()": async (path: string | URL) => void (await tryLock(path))!(),
  "open()": async (path: string | URL) => await (await open(path)).close(),
};

/** What is no path, in untyped code too, and what the error says of it. */
const REFUSED = [
  [new URL("https://example.com/"), "it must be a string or a file: URL"],
  ["", 'the path "": it is empty; the working directory is "."'],
  ["a\0b", 'the path "a\\u0000b": no path can contain a NUL'],
  [import.meta.resolve("./"), '/": it is a URL in a string; pass a URL'],
  ["file:/x", 'the path "file:/x": it is a URL in a string; pass a URL'],
  [undefined, "the path undefined: it must be a string or a file: URL"],
] as [path: string, message: string][];

for (const [name, take] of Object.entries(TAKERS)) {
  Deno.test(`${name} takes a file URL, and refuses what is no path`, async () => {
    using dir = scene();
    await take(new URL(`file://${dir.path}/a%20%C3%A9%25`));
    assertEquals(exists(resolve(dir.path, "a é%")), true);
    for (const [path, message] of REFUSED) {
      await assertRejects(() => take(path), TypeError, message);
    }
  });
}

Deno.test("lock() and open() take a relative path from the working directory of the call", async () => {
  using dir = scene();
  const code = `
    Deno.chdir(args[0]);
    const release = await lock("x.lock");
    const waiter = lock("./x.lock");
    await using cog = await open(".");
    Deno.mkdirSync("other");
    Deno.chdir("other");
    release();
    await waiter;
    await cog.path("made");
    await cog.lock();
    console.log(cog.projectDir, [...Deno.readDirSync(".")].length);
    await heard();`;
  await using child = script(code, [dir.path]);
  assertEquals(await child.line(), `${dir.path} 0`);
  assertEquals(isFree(dir.file), false);
  assertEquals(exists(resolve(dir.path, ".cog", "made")), true);
});

Deno.test("lock() refuses what are no options", async () => {
  for (const it of [() => {}, null, AbortSignal.abort()] as object[]) {
    await assertRejects(() => lock("missing/x", it), TypeError, "{ signal }");
  }
});

// Windows deletes no working directory, and resolves .. in the text.
const POSIX = { ignore: WINDOWS };
const POSIX_LINKS = { ignore: WINDOWS || !CAN_LINK };

Deno.test("all tell a deleted working directory", POSIX, async () => {
  using dir = scene();
  const code = `
  Deno.chdir(args[0]);
  Deno.removeSync(args[0]);
  for (const take of [lock, tryLock, open]) {
    const error = await take("x").catch((error) => error);
    console.log(error.code, error.message, error.cause.message);
  }`;
  const gone = resolve(dir.path, "gone");
  Deno.mkdirSync(gone);
  await using child = script(code, [gone]);
  for (let i = 0; i < 3; i++) {
    const line = await child.line();
    const expected = `ENOENT Cannot resolve "x": the working directory is `;
    assert(line.startsWith(expected), line);
    assert(line.endsWith("(os error 2)"), line);
  }
});

Deno.test("all leave .. behind a link to the system", POSIX_LINKS, async () => {
  using dir = scene();
  const real = resolve(dir.path, "real");
  Deno.mkdirSync(resolve(real, "deep"), { recursive: true });
  Deno.symlinkSync(resolve(real, "deep"), resolve(dir.path, "link"));
  const code = `
  Deno.chdir(args[0]);
  using file = Deno.openSync("link/../x", { write: true, create: true });
  file.lockSync(true);
  for (const path of ["link/../x", "./link//.././x", args[0] + "/link/../x"]) {
    console.log(await tryLock(path));
  }
  await using cog = await open("link/..");
  console.log(cog.projectDir);
  await using temp = await openTemp();
  console.log(Deno.realPathSync(temp.projectDir).startsWith(args[0] + "/real/cog-"));
  Deno.chdir("real");
  await cog.tempPath("staging");
  await temp.tempPath("staging");
  await temp.close();
  console.log([...Deno.readDirSync(".")].map(({ name }) => name).sort());`;
  const env = { TMPDIR: "link/.." };
  await using child = script(code, [dir.path], undefined, { env });
  for (let i = 0; i < 3; i++) assertEquals(await child.line(), "null");
  assertEquals(await child.line(), real);
  assertEquals(await child.line(), "true");
  assertEquals(await child.line(), `[ ".cog", "deep", "x" ]`);
  assertEquals((await child.ended()).code, 0);
});
