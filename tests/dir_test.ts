import { assert } from "@std/assert/assert";
import { assertEquals } from "@std/assert/equals";
import { assertRejects } from "@std/assert/rejects";
import { assertThrows } from "@std/assert/throws";
import { delay } from "@std/async/delay";
import { resolve } from "@std/path/resolve";
import { type Dir, NAME, open, openTemp } from "../dir.ts";
import { lock } from "../lock.ts";
import {
  CAN_LINK,
  CAN_MOUNT,
  countWaits,
  exists,
  isFree,
  names,
  ON_TERMINAL,
  onTmpfs,
  type Peer,
  replace,
  scene,
  script,
  soon,
  stranger,
  until,
  WINDOWS,
} from "./support.ts";

const { AlreadyExists, BadResource, NotADirectory, NotFound } = Deno.errors;
const METHODS = ["path", "filePath", "tempPath"] as const;
const LINKS = { ignore: !CAN_LINK };
const TERMINAL = { ignore: !ON_TERMINAL };
const POSIX_LINKS = { ignore: !CAN_LINK || WINDOWS };
const SANITIZED = { sanitizeOps: true, sanitizeResources: true };
const MOUNTS = { ignore: !CAN_MOUNT };

/** Asks for the lock, and tells when the wait has begun. */
function ask(cog: Dir) {
  const { promise: told, resolve: onWait } = Promise.withResolvers<void>();
  return { waiter: cog.lock({ onWait }), told };
}

/** A stranger, behind whom a closed handle has left a wait in the system. */
async function leaveWait(outer: Dir): Promise<Peer> {
  const path = resolve(outer.root, "cog.lock");
  const holder = stranger(path);
  await holder.line();
  const cog = await open(outer.projectDir);
  const { waiter, told } = ask(cog);
  const next = assertRejects(() => cog.lock(), BadResource);
  await soon(told);
  await delay(0); // the wait begins right after onWait
  await cog.close();
  const message = "is closed; open another, or await all calls before";
  const error = await assertRejects(() => soon(waiter), BadResource, message);
  assert(!error.message.includes(path), error.message);
  await soon(next);
  return holder;
}

Deno.test("open() creates .cog and its parents, hides it from git, and leaves what exists, as close does", async () => {
  using dir = scene();
  const project = resolve(dir.path, "a", "b");
  const root = resolve(project, ".cog");
  const ignore = resolve(root, ".gitignore");
  const reopen = async () => {
    await using cog = await open(project);
    assertEquals([cog.projectDir, cog.root], [project, root]);
    return cog.filePath("cache/a");
  };
  Deno.writeTextFileSync(await reopen(), "kept");
  assertEquals(NAME, ".cog");
  assertEquals(Deno.readTextFileSync(ignore), "*\n");
  Deno.removeSync(ignore);
  await reopen();
  assertEquals(names(root), ["cache"]);
  Deno.writeTextFileSync(ignore, "cache\n");
  assertEquals(Deno.readTextFileSync(await reopen()), "kept");
  assertEquals(Deno.readTextFileSync(ignore), "cache\n");
  Deno.removeSync(root, { recursive: true });
  const { mkdirSync } = Deno;
  using _ = replace(Deno, "mkdirSync", (path, options) => {
    mkdirSync(path, options);
    Deno.writeTextFileSync(ignore, "that of another at this moment");
  });
  await (await open(project)).close();
  assertEquals(Deno.readTextFileSync(ignore).slice(0, 4), "that");
});

Deno.test("open() on a file, or below one, keeps class and code, and says what to do", async () => {
  using dir = scene();
  const root = resolve(dir.path, ".cog");
  Deno.writeTextFileSync(root, "kept");
  const advice =
    `: a file has the name ${root}; move it away, or pass another path: `;
  const over = () => open(dir.path);
  const error = await assertRejects(over, AlreadyExists, advice);
  assert(error.cause instanceof AlreadyExists);
  if (!WINDOWS) assertEquals("code" in error && error.code, "EEXIST");
  // Windows says that the path is not found, whatever is the matter with it.
  const Class = WINDOWS ? Error : NotADirectory;
  await assertRejects(() => open(root), Class, advice);
  await assertRejects(() => open(resolve(root, "x")), Class, advice);
  assertEquals(Deno.readTextFileSync(root), "kept");
});

Deno.test("open() of a dangling link says what to do", LINKS, async () => {
  using dir = scene();
  const at = (name: string) => resolve(dir.path, name);
  for (const name of [".cog", "x"]) {
    Deno.symlinkSync(at("missing"), at(name), { type: "dir" });
  }
  const advice = (name: string) => `: ${at(name)} is a symbolic link, and its`;
  await assertRejects(() => open(dir.path), AlreadyExists, advice(".cog"));
  await assertRejects(() => open(at("x")), NotFound, advice("x"));
  await assertRejects(() => open(at("x/a")), NotFound, advice("x"));
});

Deno.test("open() without permission keeps the class and names the path", async () => {
  using dir = scene();
  const code = `await open(args[0]).catch((error) => console.log(error.name,
    error.message, error.cause instanceof Deno.errors.NotCapable));`;
  for (const granted of ["read", "write"]) {
    const permissions = [`--allow-${granted}=${dir.path}`];
    await using child = script(code, [dir.path], permissions);
    const line = await child.line();
    assert(line.startsWith(`NotCapable Cannot create ${dir.path}`), line);
    assert(line.endsWith("true"), line);
    if (granted === "read") assertEquals(names(dir.path), []);
    Deno.mkdirSync(resolve(dir.path, ".cog"), { recursive: true });
  }
});

const FULL = "No space left on device";
const DISKS = [
  ["open(args[0])", "ro", "Read-only file system", ".cog"],
  ["open(args[0])", "size=4k", FULL, ".cog/.gitignore"],
  ["openTemp()", "nr_inodes=3", FULL, "cog-"],
];

for (const [call, options, error, named] of DISKS) {
  Deno.test(`${call} on a disk of ${options} fails`, MOUNTS, async () => {
    using dir = scene();
    const code = `
      try {
        Deno.writeTextFileSync(args[0] + "/full", "x");
      } catch {}
      const error = await ${call}.catch((error) => error);
      console.log(error.message);
      console.log(error.cause.message);
      console.log([...Deno.readDirSync(args[0])].map(({ name }) => name).join());`;
    const under = onTmpfs(options, dir.path);
    const env = { TMPDIR: dir.path };
    await using child = script(code, [dir.path], undefined, { under, env });
    const message = await child.line();
    assert(message.startsWith("Cannot "), message);
    assert(message.includes(resolve(dir.path, named)), message);
    assert(message.includes(error), message);
    assert((await child.line()).includes(error));
    assertEquals(await child.line(), options === "ro" ? "" : "full");
  });
}

Deno.test("openTemp() names a wrong TMPDIR", { ignore: WINDOWS }, async () => {
  using dir = scene();
  const env = { TMPDIR: resolve(dir.path, "missing") };
  const code = `await openTemp().catch((error) =>
    console.log(error.name, error.code, error.message));`;
  const unknown = "the system's temporary directory (see TMPDIR)";
  const cases = [["--allow-env=TMPDIR", env.TMPDIR], ["--deny-env", unknown]];
  for (const [permission, named] of cases) {
    const permissions = ["--allow-read", "--allow-write", permission];
    await using child = script(code, [], permissions, { env });
    const line = await child.line();
    const expected = `NotFound ENOENT Cannot create a directory in ${named}: `;
    assert(line.startsWith(expected), line);
  }
});

Deno.test("openTemp() a thousand times leaves nothing", SANITIZED, async () => {
  const thousand = Array.from({ length: 1000 }, async (_, i) => {
    await using cog = await openTemp();
    assertEquals(cog.root, resolve(cog.projectDir, ".cog"));
    using _lock = await cog.lock();
    const build = await cog.tempPath("staging");
    await Deno.writeTextFile(resolve(build, `${i}`), "");
    await Deno.writeTextFile(await cog.filePath("cache/a"), "");
    await Deno.writeTextFile(resolve(cog.projectDir, "cog.yaml"), "");
    return cog.projectDir;
  });
  const projects = await Promise.all(thousand);
  assertEquals(new Set(projects).size, 1000);
  assertEquals(projects.filter(exists), []);
});

Deno.test("path() and filePath() create parents, take what exists, and do not create the file", async () => {
  await using cog = await openTemp();
  const path = await cog.path("a/b");
  assertEquals(path, resolve(cog.root, "a", "b"));
  const file = await cog.filePath("a/b/c/d.json");
  assertEquals(file, resolve(path, "c", "d.json"));
  assertEquals(names(resolve(path, "c")), []);
  Deno.writeTextFileSync(file, "kept");
  assertEquals(await cog.path("a/./b/"), path);
  assertEquals(await cog.filePath("a/b/c/d.json"), file);
  assertEquals(Deno.readTextFileSync(file), "kept");
});

Deno.test("path(), filePath() and tempPath() through a file keep class and code, and name the path", async () => {
  await using cog = await openTemp();
  const file = await cog.filePath("file");
  Deno.writeTextFileSync(file, "kept");
  const advice =
    `: a file has the name ${file}; move it away, or pass another path: `;
  await assertRejects(() => cog.path("file"), AlreadyExists, advice);
  for (const method of METHODS) {
    const Class = WINDOWS ? AlreadyExists : NotADirectory;
    const through = () => cog[method]("file/x/y");
    const error = await assertRejects(through, Class, advice);
    assert(error.cause instanceof Class);
    if (!WINDOWS) assertEquals("code" in error && error.code, "ENOTDIR");
  }
  assertEquals(Deno.readTextFileSync(file), "kept");
});

Deno.test("Dir follows symbolic links", LINKS, async () => {
  using dir = scene();
  const disk = resolve(dir.path, "disk");
  const project = resolve(dir.path, "project");
  Deno.mkdirSync(resolve(disk, "cache"), { recursive: true });
  Deno.mkdirSync(resolve(disk, "cog"));
  Deno.mkdirSync(project);
  Deno.symlinkSync(resolve(disk, "cog"), resolve(project, ".cog"));
  Deno.symlinkSync(resolve(disk, "cache"), resolve(disk, "cog", "cache"));
  await using cog = await open(project);
  assertEquals(cog.root, resolve(project, ".cog"));
  await cog.path("cache/a");
  Deno.writeTextFileSync(await cog.filePath("cache/b/file"), "");
  assertEquals(names(resolve(disk, "cache")), ["a", "b"]);
  (await cog.lock())();
  assertEquals(await cog.tempPath("staging"), resolve(cog.root, "staging"));
  const [, ...created] = names(resolve(disk, "cog")); // but the claim
  assertEquals(created, ["cache", "cog.lock", "staging"]);
});

Deno.test("path(), filePath() and tempPath() create a .cog that was deleted again, hidden from git", async () => {
  for (const method of METHODS) {
    await using cog = await openTemp();
    Deno.removeSync(cog.root, { recursive: true });
    await cog[method]("a/b");
    assertEquals(names(cog.root), [".gitignore", "a"]);
  }
});

/** Names that no method takes. All of their kinds are in names_test.ts. */
const REFUSED = ["/", "..", "a/../../x", "../.cog/x", "C:x", "a\0b", "\ud800"]
  .concat("COG.Lock", "a/../cog.lock", `a/.scratch-${crypto.randomUUID()}/b`)
  .concat([null, 5, new URL("file:///x")] as unknown as string[]); // untyped code

/** Names of `.cog` itself. */
const ROOTS = ["", ".", "./", "./.", "a/..", "a/../."];

Deno.test("Dir refuses names that lead elsewhere, before anything is touched", async () => {
  await using cog = await openTemp();
  for (const method of METHODS) {
    const refused = method === "path" ? REFUSED : [...REFUSED, ...ROOTS];
    for (const name of refused) {
      const shown = typeof name === "string" ? JSON.stringify(name) : name;
      const told = `the name ${shown}`;
      await assertRejects(() => cog[method](name), TypeError, told);
    }
  }
  for (const dir of REFUSED) {
    await assertRejects(() => cog.tempPath({ dir }), TypeError);
  }
  const message = "Cannot name a file in";
  await assertRejects(() => cog.filePath("/x"), TypeError, message);
  for (const name of ROOTS) assertEquals(await cog.path(name), cog.root);
  assertEquals(names(cog.root), [".gitignore"]);
  assertEquals(names(cog.projectDir), [".cog"]);
});

Deno.test("Dir takes ten thousand random names as they are or refuses them, and leaves what is around untouched", async () => {
  using dir = scene();
  await using cog = await open(resolve(dir.path, "project"));
  const sentinels = ["../above", "beside", "x", ".cog/cog.lock"]
    .map((name) => resolve(cog.projectDir, name));
  for (const it of sentinels) Deno.writeTextFileSync(it, "here");
  const pieces = ["..", ".", "cog.lock", "C:", "a", "b c", "x", "", "é…"]
    .concat(".hidden", "a.b.c", "-rf", "cog.lock2", "...", " ");
  const separators = ["/", "/", "\\", "//", ""].concat(WINDOWS ? [] : "*");
  const pick = <T>(from: T[]) => from[Math.floor(Math.random() * from.length)];
  const piece = () => pick(pieces) + pick(separators);
  let refused = 0;
  for (let i = 0; i < 10_000; i++) {
    const name = Array.from({ length: 1 + Math.random() * 4 }, piece).join("");
    const method = pick([...METHODS]);
    const path = await cog[method](name).catch((error) => {
      assert(error instanceof TypeError, `${method}("${name}"): ${error}`);
      refused++;
    });
    if (!path) continue;
    assertEquals(path, resolve(cog.root, name), `${method}("${name}")`);
    const inside = path.startsWith(cog.root + resolve("/").slice(-1)) ||
      method === "path" && path === cog.root;
    assert(inside && !sentinels.includes(path), `${method}("${name}")`);
  }
  assert(refused > 1000 && refused < 9000, `${refused} refused`);
  for (const it of sentinels) assertEquals(Deno.readTextFileSync(it), "here");
});

// Dir.lock() and Dir.tryLock()

Deno.test("Dir.lock() excludes every other handle on the project, tryLock() says so, and all get it in the order in which they asked", async () => {
  await using cog = await openTemp();
  await using other = await open(cog.projectDir);
  const path = resolve(cog.root, "cog.lock");
  const release = await cog.lock();
  assertEquals(isFree(path), false);
  assertEquals(await other.tryLock(), null);
  assertEquals(await cog.tryLock(), null);
  const signal = AbortSignal.any([]);
  const order: number[] = [];
  const asked = [other.lock(), lock(path), cog.lock({ signal })]
    .concat(lock(path, { signal }), other.lock());
  const waiters = asked.map(async (acquired, i) => {
    using _lock = await acquired;
    order.push(i);
  });
  await delay(0);
  assertEquals(order, []);
  release();
  await soon(Promise.all(waiters));
  assertEquals(order, [0, 1, 2, 3, 4]);
  (await cog.tryLock())!();
  assertEquals(Deno.statSync(path).size, 0);
});

Deno.test("Dir.lock() keeps nothing of earlier locks on its handle", async () => {
  const code = `
    await using cog = await openTemp();
    const { signal } = new AbortController();
    const released = [];
    for (const options of [{}, { signal }, {}]) {
      const release = await cog.lock(options);
      release();
      released.push(new WeakRef(release));
    }
    await new Promise((resolve) => setTimeout(resolve));
    gc();
    console.log(released.slice(0, -1).every((it) => !it.deref()));`;
  const flags = ["--allow-all", "--v8-flags=--expose-gc"];
  await using child = script(code, [], flags);
  assertEquals(await child.line(), "true");
});

// close() and defer()

Deno.test("close() runs each cleanup once, the last first, though some fail, and loses no error", async () => {
  const cog = await openTemp();
  const order: string[] = [];
  const errors = [new Error("a"), new RangeError("b"), new TypeError("c")];
  cog.defer(() => Promise.reject(errors[0]));
  cog.defer(() => void order.push("first"));
  const scratch = await cog.tempPath("staging");
  cog.defer(async () => {
    assertEquals(exists(scratch), true);
    await Promise.resolve();
    order.push("second");
    throw errors[1];
  });
  cog.defer(() => {
    order.push("third");
    throw errors[2];
  });
  const calls: Promise<void>[] = [];
  cog.defer(() => void calls.push(cog.close())); // from within a cleanup
  calls.push(cog.close(), cog.close(), cog[Symbol.asyncDispose]());
  const thrown = await cog.close().catch((error) => error);
  for (const call of calls) assert(await call.catch((it) => it) === thrown);
  assertEquals([order, calls.length], [["third", "second", "first"], 4]);
  assertEquals([scratch, cog.projectDir].filter(exists), []);
  assert(thrown instanceof SuppressedError);
  assert(thrown.error === errors[0]);
  assert(thrown.suppressed.error === errors[1]);
  assert(thrown.suppressed.suppressed === errors[2]);
});

Deno.test("close() holds the lock during the cleanups, then releases it, even if one fails", async () => {
  await using outer = await openTemp();
  const path = resolve(outer.root, "cog.lock");
  for (const method of ["lock", "tryLock"] as const) {
    const cog = await open(outer.projectDir);
    const release = await cog[method]();
    let free;
    cog.defer(async () => {
      await Promise.resolve();
      free = isFree(path);
      throw new Error("no");
    });
    await assertRejects(() => cog.close(), Error, "no");
    assertEquals([free, isFree(path)], [false, true]);
    release!();
  }
});

Deno.test("close() has every later call refused, and nothing created", async () => {
  await using outer = await openTemp();
  const cog = await open(outer.projectDir);
  let during: unknown;
  cog.defer(async () => {
    during = await cog.path("x").catch((error) => error);
  });
  await cog.close();
  assert(during instanceof BadResource);
  const named = METHODS.map((method) => () => cog[method]("x/y"));
  const unnamed = [() => cog.tempPath(), () => cog.lock(), () => cog.tryLock()];
  for (const call of [...named, ...unnamed]) {
    await assertRejects(call, BadResource, cog.root);
  }
  assertThrows(() => cog.defer(() => {}), BadResource, cog.root);
  assertEquals(names(cog.root), [".gitignore"]);
});

Deno.test("Dir.lock() whose handle closes keeps its place in the operating system until that wait ends", async () => {
  await using outer = await openTemp();
  using waits = countWaits();
  const [a, b, c] = await Promise.all(
    ["a", "b", "c"].map(async (name) => open(await outer.path(name))),
  );
  await using first = await leaveWait(a);
  await using second = await leaveWait(b);
  await using third = stranger(resolve(c.root, "cog.lock"));
  await third.line();
  const { waiter, told } = ask(c);
  await soon(told);
  await delay(0);
  assertEquals(waits.count, 2); // as many as may stand there at once
  await first.go();
  await until(() => waits.count === 3);
  for (const it of [second, third]) await it.go();
  (await soon(waiter))();
  for (const { root } of [a, b, c]) {
    await until(() => isFree(resolve(root, "cog.lock")));
  }
});

Deno.test("close() releases a lock that was granted in the queue, and none of another", async () => {
  await using outer = await openTemp();
  const path = resolve(outer.root, "cog.lock");
  for (const holder of [outer, { lock: () => lock(path) }]) {
    const release = await holder.lock();
    const other = await open(outer.projectDir);
    const cog = await open(outer.projectDir);
    const queued = cog.lock();
    await other.close();
    assertEquals(isFree(path), false);
    release();
    await soon(queued);
    await cog.close();
    assertEquals(isFree(path), true);
  }
});

Deno.test("Dir.lock() joins the wait in the system that a closed handle left, unless its file was deleted", async () => {
  await using outer = await openTemp();
  const path = resolve(outer.root, "cog.lock");
  {
    using waits = countWaits();
    await using holder = await leaveWait(outer);
    const next = [outer.lock(), outer.lock()];
    await delay(0);
    await holder.go();
    for (const it of next) (await soon(it))();
    assertEquals(waits.count, 1);
  }
  await using holder = await leaveWait(outer);
  Deno.renameSync(path, `${path}.old`);
  const release = await outer.lock(); // of a new file
  const next = outer.lock();
  release();
  (await soon(next))();
  using _theirs = Deno.openSync(path, { write: true });
  _theirs.lockSync(true);
  const waiter = outer.lock({ signal: AbortSignal.timeout(20) });
  await assertRejects(() => waiter, DOMException);
  Deno.renameSync(`${path}.old`, path);
  await holder.go(); // the wait that was left ends, though its file is back
  await holder.ended();
  (await soon(outer.lock()))();
});

Deno.test("Dir.lock(), Dir.tryLock() and tempPath() reject if their handle closes at once, and leave nothing", async () => {
  await using outer = await openTemp();
  for (const name of ["lock", "tryLock", "tempPath", "staging"] as const) {
    Deno.writeTextFileSync(await outer.filePath("staging/file"), "");
    const cog = await open(outer.projectDir);
    const call = () => name === "staging" ? cog.tempPath(name) : cog[name]();
    const refused = assertRejects(call, BadResource, "closed");
    await Promise.all([refused, cog.close()]);
    (await outer.tryLock())!();
  }
  assertEquals(names(outer.root), [".gitignore", "cog.lock"]);
});

// Permissions

for (const granted of ["the project", "no more than .cog"]) {
  Deno.test(`Dir needs no more than reading and writing ${granted}`, async () => {
    using dir = scene();
    const root = resolve(dir.path, ".cog");
    const path = granted === "the project" ? dir.path : root;
    const code = `{
        await using cog = await open(args[0]);
        await cog.path("a/b");
        await cog.filePath("c/d");
        await cog.tempPath("staging");
        await cog.tempPath("staging");
        await cog.tempPath("x/y");
        await cog.tempPath();
        (await cog.lock())();
        (await cog.tryLock())();
        (await lock(cog.root + "/a/other.lock"))();
        (await tryLock(cog.root + "/a/other.lock"))();
      }
      const cog = await open(args[0]);
      await cog.tempPath("left open");
      const temp = await openTemp().catch((error) => console.log(String(error)));
      if (temp) {
        await temp.tempPath("staging");
        (await temp.lock())();
        await temp.close();
        await openTemp();
        console.log([...Deno.readDirSync(args[0])].length);
      }`;
    const permissions = [`--allow-read=${path}`, `--allow-write=${path}`];
    const env = { TMPDIR: dir.path, TEMP: dir.path, TMP: dir.path };
    await using child = script(code, [dir.path], permissions, { env });
    const told = path === root
      ? "NotCapable: Cannot create a directory in "
      : "2";
    const line = await child.line();
    assert(line.startsWith(told), line);
    assertEquals((await child.ended()).code, 0);
    assertEquals(names(dir.path), [".cog"]);
    assertEquals(names(root), [".gitignore", "a", "c", "cog.lock", "x"]);
  });
}

Deno.test("open() and lock() ask for no more", TERMINAL, async () => {
  using dir = scene();
  const [root, missing] = [`${dir.path}/.cog`, `${dir.path}/no/x`];
  Deno.mkdirSync(root);
  Deno.writeTextFileSync(dir.file, "");
  const code = `
    const tell = ({ projectDir, message }) => console.log(projectDir ?? message);
    await open("..").then(tell);
    await open(args[0]).catch(tell);
    await lock(args[1]).catch(tell);`;
  const granted = [root, missing, `${dir.file}/.cog`];
  const permissions = [`--allow-read=${granted}`, `--allow-write=${granted}`];
  const options = { under: ON_TERMINAL, cwd: root };
  await using child = script(code, [dir.file, missing], permissions, options);
  for (const told of [`${root}/..`, "Cannot create", "Cannot lock"]) {
    const line = await child.line();
    assert(line.startsWith(told), line);
  }
});

Deno.test("Dir.lock() of a linked project", POSIX_LINKS, async () => {
  using dir = scene();
  const [link, real] = [resolve(dir.path, "link"), resolve(dir.path, "real")];
  Deno.mkdirSync(real);
  Deno.symlinkSync(real, link);
  const code = `
    await using cog = await open(args[0]);
    console.log(await cog.lock().then(() => "locked", (error) => error.name));`;
  const cases = [[link, "NotCapable"], [`${link},${real}`, "locked"]];
  for (const [granted, expected] of cases) {
    const permissions = [`--allow-read=${granted}`, `--allow-write=${granted}`];
    await using child = script(code, [link], permissions);
    assertEquals(await child.line(), expected);
  }
});
