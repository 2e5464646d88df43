import { assert } from "@std/assert/assert";
import { assertEquals } from "@std/assert/equals";
import { assertRejects } from "@std/assert/rejects";
import { assertThrows } from "@std/assert/throws";
import { delay } from "@std/async/delay";
import { resolve } from "@std/path/resolve";
import { NAME, open, openTemp } from "../dir.ts";
import { lock } from "../lock.ts";
import {
  blocked,
  CAN_LINK,
  CAN_MOUNT,
  countWaits,
  exists,
  has,
  HAS_PROC,
  isFree,
  names,
  onTmpfs,
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

// open()

Deno.test("open() creates .cog and its parents", async () => {
  using dir = scene();
  const project = resolve(dir.path, "a", "b");
  await using cog = await open(project);
  assertEquals(cog.projectDir, project);
  assertEquals(cog.root, resolve(project, ".cog"));
  assertEquals(NAME, ".cog");
  assertEquals(Deno.statSync(cog.root).isDirectory, true);
});

Deno.test("open() leaves what exists, and close does too", async () => {
  using dir = scene();
  const kept = resolve(dir.path, ".cog", "cache", "a");
  Deno.mkdirSync(resolve(kept, ".."), { recursive: true });
  Deno.writeTextFileSync(kept, "kept");
  const cog = await open(dir.path);
  await cog.path("made");
  await cog.close();
  assertEquals(names(resolve(dir.path, ".cog")), ["cache", "made"]);
  assertEquals(Deno.readTextFileSync(kept), "kept");
});

Deno.test("open() hides a new .cog from git, and leaves others as they are", async () => {
  using dir = scene();
  const ignore = resolve(dir.path, ".cog", ".gitignore");
  await (await open(dir.path)).close();
  assertEquals(Deno.readTextFileSync(ignore), "*\n");
  Deno.removeSync(ignore);
  await (await open(dir.path)).close();
  assertEquals(exists(ignore), false);
  Deno.writeTextFileSync(ignore, "cache\n");
  await (await open(dir.path)).close();
  assertEquals(Deno.readTextFileSync(ignore), "cache\n");
});

Deno.test("open() leaves a .gitignore that another process wrote at that moment", async () => {
  using dir = scene();
  const ignore = resolve(dir.path, ".cog", ".gitignore");
  const { mkdirSync } = Deno;
  using _ = replace(Deno, "mkdirSync", (path) => {
    mkdirSync(path);
    Deno.writeTextFileSync(ignore, "theirs");
  });
  await (await open(dir.path)).close();
  assertEquals(Deno.readTextFileSync(ignore), "theirs");
});

Deno.test("git shows nothing of .cog", { ignore: !has("git") }, async () => {
  using dir = scene();
  const git = (...args: string[]) =>
    new Deno.Command("git", { args, cwd: dir.path }).outputSync();
  git("init");
  await using cog = await open(dir.path);
  Deno.writeTextFileSync(await cog.filePath("cache/manifest.json"), "");
  using _lock = await cog.lock();
  await cog.tempPath("staging");
  const { success, stdout } = git("status", "--porcelain");
  assertEquals([success, new TextDecoder().decode(stdout)], [true, ""]);
});

Deno.test("open() on a file, or below one, keeps class and code, and names the path", async () => {
  using dir = scene();
  const root = resolve(dir.path, ".cog");
  Deno.writeTextFileSync(root, "kept");
  const error = await assertRejects(() => open(dir.path), AlreadyExists);
  assert(error.message.startsWith(`Cannot create ${root}`), error.message);
  assert(error.cause instanceof AlreadyExists);
  if (!WINDOWS) assertEquals("code" in error && error.code, "EEXIST");
  // Windows says that the path is not found, whatever is the matter with it.
  const Class = WINDOWS ? Error : NotADirectory;
  await assertRejects(() => open(root), Class, root);
  await assertRejects(() => open(resolve(root, "x")), Class, root);
  assertEquals(Deno.readTextFileSync(root), "kept");
});

Deno.test("open() without permission keeps the class and names the path", async () => {
  using dir = scene();
  const code = `await open(args[0]).catch((error) => console.log(error.name,
    error.message, error.cause instanceof Deno.errors.NotCapable));`;
  for (const [granted, tried] of [["read", "create"], ["write", "open"]]) {
    const permissions = [`--allow-${granted}=${dir.path}`];
    await using child = script(code, [dir.path], permissions);
    const line = await child.line();
    assert(line.startsWith(`NotCapable Cannot ${tried} ${dir.path}`), line);
    assert(line.endsWith("true"), line);
    if (granted === "read") assertEquals(names(dir.path), []);
    Deno.mkdirSync(resolve(dir.path, ".cog"), { recursive: true });
  }
});

const FULL = "No space left on device";

for (
  const [call, disk, options, error, named] of [
    ["open(args[0])", "a read-only", "ro", "Read-only file system", ".cog"],
    ["open(args[0])", "a full", "size=4k,nr_inodes=2", FULL, ".cog"],
    ["openTemp()", "a full", "nr_inodes=2", FULL, "cog-"],
  ]
) {
  Deno.test(`${call} on ${disk} disk keeps the error, and leaves nothing`, {
    ignore: !CAN_MOUNT,
  }, async () => {
    using dir = scene();
    const code = `
      const error = await ${call}.catch((error) => error);
      console.log(error.message);
      console.log(error.cause.message);
      console.log([...Deno.readDirSync(args[0])].length);`;
    const under = onTmpfs(options, dir.path);
    const env = { TMPDIR: dir.path };
    await using child = script(code, [dir.path], undefined, { under, env });
    const message = await child.line();
    assert(message.startsWith("Cannot "), message);
    assert(message.includes(resolve(dir.path, named)), message);
    assert(message.includes(error), message);
    assert((await child.line()).includes(error));
    assertEquals(await child.line(), "0");
  });
}

Deno.test("open() that cannot write all of .gitignore leaves nothing", async () => {
  using dir = scene();
  using _ = replace(Deno, "writeTextFileSync", (path) => {
    Deno.createSync(path).close();
    throw new Error("No space left on device");
  });
  const ignore = resolve(dir.path, ".cog", ".gitignore");
  await assertRejects(() => open(dir.path), Error, `Cannot write ${ignore}`);
  assertEquals(names(dir.path), []);
});

// openTemp()

Deno.test("openTemp() creates a new directory, and close removes all of it", async () => {
  const cog = await openTemp();
  await using other = await openTemp();
  assertEquals(cog.root, resolve(cog.projectDir, ".cog"));
  await Deno.writeTextFile(await cog.filePath("cache/a"), "");
  await Deno.writeTextFile(resolve(cog.projectDir, "cog.yaml"), "");
  (await cog.lock())();
  await cog.close();
  assertEquals(exists(cog.projectDir), false);
  assertEquals(exists(other.root), true);
});

Deno.test("openTemp() resolves TMPDIR", { ignore: WINDOWS }, async () => {
  using dir = scene();
  const code = `
    await using cog = await openTemp();
    Deno.chdir("/");
    await cog.path("made");
    console.log(cog.projectDir);`;
  const options = { cwd: dir.path, env: { TMPDIR: "." } };
  await using child = script(code, [], undefined, options);
  assertEquals(resolve(await child.line(), ".."), dir.path);
  assertEquals((await child.ended()).code, 0);
});

Deno.test("openTemp() names a wrong TMPDIR", { ignore: WINDOWS }, async () => {
  using dir = scene();
  const env = { TMPDIR: resolve(dir.path, "missing") };
  const code = `await openTemp().catch((error) =>
    console.log(error.name, error.code, error.message));`;
  const cases = [
    ["--allow-env=TMPDIR", env.TMPDIR],
    ["--deny-env", "the system's temporary directory (see TMPDIR)"],
  ];
  for (const [permission, named] of cases) {
    const permissions = ["--allow-read", "--allow-write", permission];
    await using child = script(code, [], permissions, { env });
    const line = await child.line();
    const expected = `NotFound ENOENT Cannot create a directory in ${named}: `;
    assert(line.startsWith(expected), line);
  }
});

Deno.test("openTemp() a thousand times in parallel passes the sanitizers", {
  sanitizeOps: true,
  sanitizeResources: true,
}, async () => {
  const thousand = Array.from({ length: 1000 }, async (_, i) => {
    await using cog = await openTemp();
    using _lock = await cog.lock();
    const build = await cog.tempPath("staging");
    await Deno.writeTextFile(resolve(build, `${i}`), "");
    return cog.projectDir;
  });
  const projects = await Promise.all(thousand);
  assertEquals(new Set(projects).size, 1000);
  assertEquals(projects.filter(exists), []);
});

// path() and filePath()

Deno.test("path() creates nested directories, and takes what exists", async () => {
  await using cog = await openTemp();
  const path = await cog.path("a/b");
  assertEquals(path, resolve(cog.root, "a", "b"));
  Deno.writeTextFileSync(resolve(path, "file"), "kept");
  assertEquals(await cog.path("a/./b/"), path);
  assertEquals(names(path), ["file"]);
});

Deno.test("filePath() creates the parents, and not the file", async () => {
  await using cog = await openTemp();
  const path = await cog.filePath("a/b/c.json");
  assertEquals(path, resolve(cog.root, "a", "b", "c.json"));
  assertEquals(names(resolve(path, "..")), []);
  Deno.writeTextFileSync(path, "kept");
  assertEquals(await cog.filePath("a/b/c.json"), path);
  assertEquals(Deno.readTextFileSync(path), "kept");
});

Deno.test("path(), filePath() and tempPath() through a file keep class and code, and name the path", async () => {
  await using cog = await openTemp();
  const file = await cog.filePath("file");
  Deno.writeTextFileSync(file, "kept");
  await assertRejects(() => cog.path("file"), AlreadyExists, file);
  for (const method of METHODS) {
    const Class = WINDOWS ? AlreadyExists : NotADirectory;
    const error = await assertRejects(() => cog[method]("file/x/y"), Class);
    assert(error.message.includes(file), error.message);
    assert(error.cause instanceof Class);
    if (!WINDOWS) assertEquals("code" in error && error.code, "ENOTDIR");
  }
  assertEquals(Deno.readTextFileSync(file), "kept");
});

Deno.test("Dir follows symbolic links", { ignore: !CAN_LINK }, async () => {
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
  assertEquals(names(resolve(disk, "cog")), ["cache", "cog.lock", "staging"]);
});

Deno.test("path(), filePath() and tempPath() create a .cog that was deleted again, hidden from git", async () => {
  for (const method of METHODS) {
    await using cog = await openTemp();
    Deno.removeSync(cog.root, { recursive: true });
    await cog[method]("a/b");
    assertEquals(names(cog.root), [".gitignore", "a"]);
  }
});

// Names

const RESERVED = `.scratch-${crypto.randomUUID()}`;
const RAISED = RESERVED.toUpperCase().replace("SCRATCH", "scratch");

/** Names that no method takes. */
const REFUSED = [
  ["/", "/etc/passwd", "//x"],
  ["..", "../", "../x", "./../x", "a/../../x", "a/b/../../../x", "../.cog/x"],
  ["c:", "C:x", "c:/x", "C:\\x", "a\0b", "\0"],
  ["cog.lock", "./cog.lock", "cog.lock/x", "a/../cog.lock", "COG.Lock"],
  [RESERVED, RAISED, `a/${RESERVED}`, `${RESERVED}/a`, `a/${RESERVED}/b`],
  WINDOWS ? ["\\x", "..\\x", "a\\..\\..\\x", "\\\\host\\share"] : [],
].flat();

/** Names of `.cog` itself. */
const ROOTS = ["", ".", "./", "./.", "a/..", "a/../."];

Deno.test("Dir refuses names that lead elsewhere, before anything is touched", async () => {
  await using cog = await openTemp();
  const before = names(cog.root);
  const beside = names(cog.projectDir);
  for (const method of METHODS) {
    const refused = method === "path" ? REFUSED : [...REFUSED, ...ROOTS];
    for (const name of refused) {
      await assertRejects(() => cog[method](name), TypeError, `"${name}"`);
    }
  }
  for (const name of ROOTS) assertEquals(await cog.path(name), cog.root);
  assertEquals(names(cog.root), before);
  assertEquals(names(cog.projectDir), beside);
});

Deno.test("Dir takes spaces, dots, unicode, dashes and stars as they are", async () => {
  await using cog = await openTemp();
  const ordinary = ["a b", ".hidden", "a.b.c", "é…", "-rf", "cog.lock2"]
    .concat("a/cog.lock")
    .concat(WINDOWS ? [] : ["*", "...", "a\\..\\..\\x", " ", "ab:c", "\\"]);
  for (const name of ordinary) {
    assertEquals(await cog.path(name), resolve(cog.root, name));
    assertEquals(await cog.filePath(`f/${name}`), resolve(cog.root, "f", name));
    assertEquals(await cog.tempPath(`t/${name}`), resolve(cog.root, "t", name));
    assertEquals(exists(resolve(cog.root, name)), true);
  }
});

Deno.test("Dir keeps ten thousand random names inside, and what is around untouched", async () => {
  using dir = scene();
  await using cog = await open(resolve(dir.path, "project"));
  const lockFile = resolve(cog.root, "cog.lock");
  const sentinels = ["../above", "beside", "x", ".cog/cog.lock"]
    .map((name) => resolve(cog.projectDir, name));
  for (const it of sentinels) Deno.writeTextFileSync(it, "here");
  const pieces = ["..", ".", "cog.lock", "C:", "a", "b c", "x", "", "é"];
  const pick = <T>(from: T[]) => from[Math.floor(Math.random() * from.length)];
  let refused = 0;
  for (let i = 0; i < 10_000; i++) {
    let name = pick(pieces);
    for (let n = Math.random() * 5; n > 1; n--) {
      name += pick(["/", "/", "\\", "//"]) + pick(pieces);
    }
    const method = pick([...METHODS]);
    try {
      const path = await cog[method](name);
      const inside = path.startsWith(cog.root + resolve("/").slice(-1)) ||
        method === "path" && path === cog.root;
      assert(inside && path !== lockFile, `${method}("${name}") is ${path}`);
    } catch (error) {
      assert(error instanceof TypeError, `${method}("${name}"): ${error}`);
      refused++;
    }
  }
  assert(refused > 1000 && refused < 9000, `${refused} refused`);
  for (const it of sentinels) assertEquals(Deno.readTextFileSync(it), "here");
});

// Dir.lock() and Dir.tryLock()

Deno.test("Dir.lock() excludes every other handle on the project, tryLock() says so", async () => {
  await using cog = await openTemp();
  await using other = await open(cog.projectDir);
  const release = await cog.lock();
  assertEquals(isFree(resolve(cog.root, "cog.lock")), false);
  assertEquals(await other.tryLock(), null);
  assertEquals(await cog.tryLock(), null);
  const { promise: told, resolve: onWait } = Promise.withResolvers<void>();
  const next = other.lock({ onWait });
  await soon(told);
  release();
  (await soon(next))();
  (await cog.tryLock())!();
  assertEquals(Deno.statSync(resolve(cog.root, "cog.lock")).size, 0);
});

for (const acquire of ["lock()", "Dir.lock()"]) {
  for (const isFree of [true, false]) {
    Deno.test(`${acquire} of a ${isFree ? "free" : "held"} lock rejects exactly if it is aborted before it settles`, async () => {
      await using cog = await openTemp();
      const path = resolve(cog.root, "cog.lock");
      for (let microtasks = 0; microtasks < 12; microtasks++) {
        const holder = isFree ? undefined : await cog.lock();
        const controller = new AbortController();
        const acquired = acquire === "lock()"
          ? lock(path, controller)
          : cog.lock(controller);
        holder?.();
        for (let i = 0; i < microtasks; i++) await null;
        const isPending = Deno.inspect(acquired).includes("<pending>");
        controller.abort("reason");
        const settled = await acquired.catch((reason) => reason);
        assertEquals(settled === "reason", isPending);
        if (!isPending) settled();
        (await cog.tryLock())!();
      }
    });
  }
}

Deno.test("Dir.lock() keeps the order in which handles and lock() of the file ask", async () => {
  await using cog = await openTemp();
  await using other = await open(cog.projectDir);
  const release = await cog.lock();
  const { signal } = new AbortController();
  const order: number[] = [];
  const waiters = [
    () => other.lock(),
    () => lock(resolve(cog.root, "cog.lock")),
    () => cog.lock({ signal }),
    () => lock(resolve(cog.root, "cog.lock"), { signal }),
    () => other.lock(),
  ].map(async (ask, i) => {
    using _lock = await ask();
    order.push(i);
  });
  release();
  await soon(Promise.all(waiters));
  assertEquals(order, [0, 1, 2, 3, 4]);
});

Deno.test("Dir.lock() leaves nothing attached to its signal: a script ends at once", async () => {
  using dir = scene();
  const code = `
    const cog = await open(args[0]);
    const signal = AbortSignal.timeout(600_000);
    const first = await cog.lock({ signal });
    const second = cog.lock({ signal });
    first();
    (await second)();
    console.log("released");
    await heard();
    const say = (error) => console.log(error.name);
    await cog.lock({ signal: AbortSignal.timeout(50) }).catch(say);
    await new Promise((onWait) => {
      cog.lock({ signal: new AbortController().signal, onWait }).catch(say);
    });
    await cog.close();`;
  await using child = script(code, [dir.path]);
  assertEquals(await child.line(), "released");
  await using holder = stranger(resolve(dir.path, ".cog", "cog.lock"));
  await holder.line();
  await child.go();
  assertEquals(await child.line(), "TimeoutError");
  assertEquals(await child.line(), "BadResource");
  assertEquals((await child.ended()).code, 0);
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

Deno.test("Dir.lock() and Dir.tryLock() say it if .cog was deleted", async () => {
  await using cog = await openTemp();
  Deno.removeSync(cog.root, { recursive: true });
  await assertRejects(() => cog.lock(), NotFound, cog.root);
  await assertRejects(() => cog.tryLock(), NotFound, cog.root);
});

// close() and defer()

Deno.test("close() runs the cleanups in reverse order, each after the last", async () => {
  const cog = await openTemp();
  const order: string[] = [];
  cog.defer(() => void order.push("first"));
  const scratch = await cog.tempPath("staging");
  cog.defer(async () => {
    assertEquals(exists(scratch), true);
    await Promise.resolve();
    order.push("second");
  });
  cog.defer(() => void order.push("third"));
  await cog.close();
  assertEquals(order, ["third", "second", "first"]);
  assertEquals(exists(scratch), false);
});

Deno.test("close() runs all cleanups though some fail, and loses no error", async () => {
  const cog = await openTemp();
  const errors = [new Error("a"), new RangeError("b"), new TypeError("c")];
  for (const error of errors) cog.defer(() => Promise.reject(error));
  const thrown = await cog.close().catch((error) => error);
  assertEquals(exists(cog.projectDir), false);
  assert(thrown instanceof SuppressedError);
  assert(thrown.error === errors[0]);
  assert(thrown.suppressed.error === errors[1]);
  assert(thrown.suppressed.suppressed === errors[2]);
});

Deno.test("close() any number of times runs the cleanups once, with one outcome", async () => {
  const cog = await openTemp();
  let runs = 0;
  cog.defer(() => {
    runs++;
    throw new RangeError("once");
  });
  const calls: Promise<void>[] = [];
  cog.defer(() => void calls.push(cog.close())); // from within a cleanup
  calls.push(cog.close(), cog.close(), cog[Symbol.asyncDispose]());
  for (const call of calls) await assertRejects(() => call, RangeError, "once");
  await assertRejects(() => cog.close(), RangeError, "once");
  assertEquals([runs, calls.length], [1, 4]);
});

Deno.test("close() holds the lock during the cleanups, then releases it", async () => {
  await using outer = await openTemp();
  const path = resolve(outer.root, "cog.lock");
  const cog = await open(outer.projectDir);
  const release = await cog.lock();
  let free;
  cog.defer(async () => {
    await Promise.resolve();
    free = isFree(path);
  });
  await cog.close();
  assertEquals(free, false);
  assertEquals(isFree(path), true);
  release();
});

Deno.test("close() releases the lock even if a cleanup fails", async () => {
  await using outer = await openTemp();
  const cog = await open(outer.projectDir);
  await cog.tryLock();
  cog.defer(() => Promise.reject(new Error("no")));
  await assertRejects(() => cog.close());
  (await outer.tryLock())!();
});

Deno.test("close() has every later call refused, and nothing created", async () => {
  await using outer = await openTemp();
  const cog = await open(outer.projectDir);
  const before = names(cog.root);
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
  assertEquals(names(cog.root), before);
});

for (const holder of ["this", "another"]) {
  for (const signal of [undefined, new AbortController().signal]) {
    const how = signal ? "with" : "without";
    Deno.test(`Dir.lock() ${how} a signal behind ${holder} process rejects when its handle closes, and holds nothing later`, async () => {
      await using outer = await openTemp();
      const path = resolve(outer.root, "cog.lock");
      await using stack = new AsyncDisposableStack();
      const release = holder === "this" ? await outer.lock() : undefined;
      const peer = release ? undefined : stack.use(stranger(path));
      await peer?.line();
      const cog = await open(outer.projectDir);
      const { promise: told, resolve: onWait } = Promise.withResolvers<void>();
      const waiter = cog.lock({ signal, onWait });
      const next = assertRejects(() => cog.lock({ signal }), BadResource);
      await soon(told);
      const mustBlock = peer && !signal && HAS_PROC;
      if (mustBlock) await until(() => blocked(Deno.pid) > 0);
      await cog.close();
      const error = await assertRejects(() => soon(waiter), BadResource);
      assert(error.message.includes("closed"), error.message);
      assert(!error.message.includes(path), error.message);
      await soon(next);
      release?.();
      await peer?.go();
      await peer?.ended();
      await until(() => isFree(path));
      (await soon(outer.lock()))();
      (await outer.tryLock())!();
    });
  }
}

Deno.test("Dir.lock() whose handle closes keeps its place in the operating system until that wait ends", async () => {
  await using outer = await openTemp();
  using waits = countWaits();
  await using stack = new AsyncDisposableStack();
  const ask = async (name: string) => {
    const cog = await open(await outer.path(name));
    const path = resolve(cog.root, "cog.lock");
    const holder = stack.use(stranger(path));
    await holder.line();
    const { promise: told, resolve: onWait } = Promise.withResolvers<void>();
    const waiter = cog.lock({ onWait });
    waiter.catch(() => {});
    await soon(told);
    await delay(0); // the wait begins right after onWait
    return { cog, path, holder, waiter };
  };
  const all = [await ask("a"), await ask("b")];
  for (const { cog } of all) await cog.close();
  all.push(await ask("c"));
  assertEquals(waits.count, 2); // as many as may stand there at once
  await all[0].holder.go();
  await until(() => waits.count === 3);
  for (const { holder } of all.slice(1)) await holder.go();
  (await soon(all[2].waiter))();
  await all[2].cog.close();
  for (const { path } of all) await until(() => isFree(path));
});

Deno.test("Dir.lock() of a thousand handles that close leaves no place in the queue", async () => {
  await using outer = await openTemp();
  const release = await outer.lock();
  const cogs = await Promise.all(
    Array.from({ length: 1000 }, () => open(outer.projectDir)),
  );
  const waiters = cogs.map((cog) =>
    assertRejects(() => cog.lock(), BadResource)
  );
  await delay(0);
  for (const cog of cogs) cog.close();
  release();
  (await outer.tryLock())!();
  await Promise.all(waiters);
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

Deno.test("Dir.lock() does not join the wait for a file that was deleted", async () => {
  await using outer = await openTemp();
  const path = resolve(outer.root, "cog.lock");
  await using holder = stranger(path);
  await holder.line();
  using waits = countWaits();
  const cog = await open(outer.projectDir);
  const abandoned = assertRejects(() => cog.lock(), BadResource);
  await until(() => waits.count === 1);
  await cog.close();
  await abandoned;
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

Deno.test("Dir.lock() joins the wait in the system that a closed handle left behind", async () => {
  await using outer = await openTemp();
  await using holder = stranger(resolve(outer.root, "cog.lock"));
  await holder.line();
  using waits = countWaits();
  const cog = await open(outer.projectDir);
  const message = "closed before the lock was granted; is an `await` missing";
  const waiter = assertRejects(() => cog.lock(), BadResource, message);
  await until(() => waits.count === 1);
  await cog.close();
  await waiter;
  const next = [outer.lock(), outer.lock()];
  await delay(0);
  assertEquals(waits.count, 1);
  await holder.go();
  for (const it of next) (await soon(it))();
  assertEquals(waits.count, 1);
});

Deno.test("Dir.lock() does not call onWait after its handle has closed", async () => {
  await using outer = await openTemp();
  using _lock = await outer.lock();
  const cog = await open(outer.projectDir);
  let calls = 0;
  const waiter = cog.lock({ onWait: () => calls++ });
  const closed = cog.close();
  await assertRejects(() => waiter, BadResource);
  await closed;
  await delay(0);
  assertEquals(calls, 0);
});

Deno.test("Dir.lock() whose own onWait closes its handle does not wait in the operating system", async () => {
  await using outer = await openTemp();
  const path = resolve(outer.root, "cog.lock");
  using holder = Deno.openSync(path, { write: true, create: true });
  holder.lockSync(true);
  const cog = await open(outer.projectDir);
  using waits = countWaits();
  const waiter = cog.lock({ onWait: () => void cog.close() });
  await assertRejects(() => waiter, BadResource, "closed");
  assertEquals(waits.count, 0);
});

Deno.test("close() of an openTemp() that holds the lock, with waiters behind it, removes the directory", async () => {
  for (let i = 0; i < 20; i++) {
    const cog = await openTemp();
    await cog.lock();
    const waiters = Array.from({ length: 20 }, () => cog.lock());
    const settled = Promise.allSettled(waiters);
    await cog.close();
    for (const { status } of await settled) assertEquals(status, "rejected");
    assertEquals(exists(cog.projectDir), false);
  }
});

Deno.test("Dir.lock() and Dir.tryLock() that are granted just as their handle closes hold nothing", async () => {
  await using outer = await openTemp();
  for (const method of ["lock", "tryLock"] as const) {
    const cog = await open(outer.projectDir);
    const acquired = cog[method]();
    const closed = cog.close();
    await assertRejects(() => acquired, BadResource);
    await closed;
    (await outer.tryLock())!();
  }
});

// Permissions

for (const granted of ["the project", "no more than .cog"]) {
  Deno.test(`Dir needs no more than reading and writing ${granted}, but for openTemp()`, async () => {
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
      await openTemp().catch((error) => console.log(String(error)));`;
    const permissions = [`--allow-read=${path}`, `--allow-write=${path}`];
    await using child = script(code, [dir.path], permissions);
    const line = await child.line();
    assert(line.startsWith("NotCapable: Cannot create a directory in "), line);
    assertEquals((await child.ended()).code, 0);
    assertEquals(names(root), [".gitignore", "a", "c", "cog.lock", "x"]);
  });
}

Deno.test("Dir.lock() behind a symbolic link needs permission for the target", {
  ignore: !CAN_LINK || WINDOWS,
}, async () => {
  using dir = scene();
  const link = resolve(dir.path, "link");
  const real = resolve(dir.path, "real");
  Deno.mkdirSync(real);
  Deno.symlinkSync(real, link);
  const code = `
    await using cog = await open(args[0]);
    await cog.lock().then(
      () => console.log("a release"),
      (error) => console.log(error.name),
    );`;
  const cases = [[link, "NotCapable"], [`${link},${real}`, "a release"]];
  for (const [granted, expected] of cases) {
    const permissions = [`--allow-read=${granted}`, `--allow-write=${granted}`];
    await using child = script(code, [link], permissions);
    assertEquals(await child.line(), expected);
  }
});

Deno.test("openTemp() needs no more than reading and writing the temporary directory", async () => {
  using dir = scene();
  const code = `{
      await using cog = await openTemp();
      await cog.tempPath("staging");
      (await cog.lock())();
    }
    console.log([...Deno.readDirSync(args[0])].length);
    await openTemp();`;
  const permissions = ["read", "write"].map((it) =>
    `--allow-${it}=${dir.path}`
  );
  const env = { TMPDIR: dir.path, TEMP: dir.path, TMP: dir.path };
  await using child = script(code, [dir.path], permissions, { env });
  assertEquals(await child.line(), "0");
  assertEquals((await child.ended()).code, 0);
  assertEquals(names(dir.path), []);
});
