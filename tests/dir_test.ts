import { assert } from "@std/assert/assert";
import { assertEquals } from "@std/assert/equals";
import { assertRejects } from "@std/assert/rejects";
import { assertThrows } from "@std/assert/throws";
import { delay } from "@std/async/delay";
import { resolve } from "@std/path/resolve";
import { Dir, NAME, open, openTemp } from "../dir.ts";
import {
  CAN_LINK,
  exists,
  flock,
  has,
  isFree,
  names,
  openFiles,
  replace,
  scene,
  script,
  soon,
  stranger,
  until,
} from "./support.ts";

const HAS_FLOCK = has("flock");
const HAS_GIT = has("git");
const WINDOWS = Deno.build.os === "windows";
const IS_ROOT = !WINDOWS && Deno.uid() === 0;
const CAN_MOUNT = Deno.build.os === "linux" && IS_ROOT && has("mount") &&
  new Deno.Command("unshare", { args: ["-m", "true"] }).outputSync().success;

const HAS_BIRTH_TIMES = (() => {
  using dir = scene();
  return Deno.statSync(dir.path).birthtime !== null;
})();

// The surface, row by row of the Go package's

Deno.test("NAME is the directory's name", () => {
  assertEquals(NAME, ".cog");
});

Deno.test("open() makes .cog and its parents", async () => {
  using dir = scene();
  const project = resolve(dir.path, "a", "b");
  await using cog = await open(project);
  assertEquals(cog.projectDir, project);
  assertEquals(cog.root, resolve(project, ".cog"));
  assertEquals(Deno.statSync(cog.root).isDirectory, true);
});

Deno.test("open() leaves what is there, and close does too", async () => {
  using dir = scene();
  Deno.mkdirSync(resolve(dir.path, ".cog", "cache"), { recursive: true });
  Deno.writeTextFileSync(resolve(dir.path, ".cog", "cache", "a"), "kept");
  {
    await using cog = await open(dir.path);
    await cog.path("made");
  }
  assertEquals(names(resolve(dir.path, ".cog")), ["cache", "made"]);
  const kept = resolve(dir.path, ".cog", "cache", "a");
  assertEquals(Deno.readTextFileSync(kept), "kept");
});

Deno.test("open() takes a file URL with percent-escapes", async () => {
  using dir = scene();
  await using cog = await open(new URL(`file://${dir.path}/a%20%C3%A9%25`));
  assertEquals(cog.projectDir, resolve(dir.path, "a é%"));
  assertEquals(exists(resolve(dir.path, "a é%", ".cog")), true);
});

Deno.test("open() refuses a URL that is no file", async () => {
  await assertRejects(() => open(new URL("https://example.com/")), TypeError);
});

Deno.test("Dir keeps its paths when the working directory changes", async () => {
  using dir = scene();
  await using child = script(
    `Deno.chdir(args[0]);
     await using cog = await open(".");
     Deno.mkdirSync("other");
     Deno.chdir("other");
     await cog.path("made");
     using _lock = await cog.lock();
     console.log(cog.root);
     console.log(cog.projectDir);`,
    [dir.path],
  );
  assertEquals(await child.line(), resolve(dir.path, ".cog"));
  assertEquals(await child.line(), dir.path);
  await child.ended();
  assertEquals(names(dir.path), [".cog", "other"]);
  assertEquals(names(resolve(dir.path, ".cog")).includes("made"), true);
});

Deno.test("Dir cannot be constructed by hand", () => {
  const Constructor = Dir as unknown as new (...args: unknown[]) => Dir;
  assertThrows(() => new Constructor(), TypeError, "call open() or openTemp()");
  assertThrows(() => new Constructor(Symbol(), "/"), TypeError);
});

Deno.test("openTemp() makes a new directory, and close removes all of it", async () => {
  const cog = await openTemp();
  const other = await openTemp();
  assert(cog.projectDir !== other.projectDir);
  assertEquals(cog.root, resolve(cog.projectDir, ".cog"));
  await Deno.writeTextFile(await cog.filePath("cache/a"), "");
  await Deno.writeTextFile(resolve(cog.projectDir, "cog.yaml"), "");
  (await cog.lock())();
  await cog.close();
  assertEquals(exists(cog.projectDir), false);
  assertEquals(exists(other.root), true);
  await other.close();
});

Deno.test(
  "openTemp() gives absolute paths, whatever the temporary directory is called",
  {
    ignore: WINDOWS,
  },
  async () => {
    using dir = scene();
    await using child = script(
      `await using cog = await openTemp();
     Deno.chdir("/");
     await cog.path("made");
     console.log(cog.projectDir);`,
      [],
      undefined,
      { cwd: dir.path, env: { TMPDIR: "." } },
    );
    assertEquals(resolve(await child.line(), ".."), dir.path);
    assertEquals((await child.ended()).code, 0);
  },
);

Deno.test("path() makes nested directories, and takes what exists", async () => {
  await using cog = await openTemp();
  const path = await cog.path("a/b");
  assertEquals(path, resolve(cog.root, "a", "b"));
  Deno.writeTextFileSync(resolve(path, "file"), "kept");
  assertEquals(await cog.path("a/./b/"), path);
  assertEquals(names(path), ["file"]);
});

Deno.test("filePath() makes the parents, and not the file", async () => {
  await using cog = await openTemp();
  const path = await cog.filePath("a/b/c.json");
  assertEquals(path, resolve(cog.root, "a", "b", "c.json"));
  assertEquals(names(resolve(path, "..")), []);
  Deno.writeTextFileSync(path, "kept");
  assertEquals(await cog.filePath("a/b/c.json"), path);
  assertEquals(Deno.readTextFileSync(path), "kept");
});

Deno.test("tempPath() wipes what was there, and close removes it", async () => {
  await using cog = await openTemp();
  const old = resolve(await cog.path("x/build/deep"), "file");
  Deno.writeTextFileSync(old, "");
  const again = await open(cog.projectDir);
  const path = await again.tempPath("x/build");
  assertEquals(path, resolve(cog.root, "x", "build"));
  assertEquals(names(path), []);
  Deno.writeTextFileSync(resolve(path, "file"), "");
  await again.close();
  assertEquals(names(resolve(path, "..")), []);
});

Deno.test("tempPath() wipes a file of that name", async () => {
  await using cog = await openTemp();
  Deno.writeTextFileSync(await cog.filePath("build"), "");
  const path = await cog.tempPath("build");
  assertEquals(Deno.statSync(path).isDirectory, true);
  assertEquals(names(cog.root), [".gitignore", "build"]);
});

Deno.test("tempPath() twice in one Dir gives an empty directory twice", async () => {
  await using cog = await openTemp();
  const inner = await open(cog.projectDir);
  const files = Deno.build.os === "linux" ? openFiles().length : 0;
  for (let i = 0; i < 5; i++) {
    const path = await inner.tempPath("build");
    assertEquals(names(path), []);
    Deno.writeTextFileSync(resolve(path, "file"), "");
  }
  if (files) assertEquals(openFiles().length, files + 1);
  await inner.close();
  assertEquals(names(cog.root), [".gitignore"]);
});

Deno.test("tempPath() leaves the mode to the umask", {
  ignore: WINDOWS,
}, async () => {
  using dir = scene();
  await using child = script(
    `Deno.umask(0o002);
     await using cog = await open(args[0]);
     for (const path of [cog.root, await cog.path("p"), await cog.tempPath("t")]) {
       console.log((Deno.statSync(path).mode & 0o777).toString(8));
     }`,
    [dir.path],
  );
  for (let i = 0; i < 3; i++) assertEquals(await child.line(), "775");
});

Deno.test("lock() excludes every other handle on the project, tryLock() says so", async () => {
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

Deno.test("lock() excludes flock(1) on cog.lock", {
  ignore: !HAS_FLOCK,
}, async () => {
  await using cog = await openTemp();
  await using holder = flock(resolve(cog.root, "cog.lock"));
  await holder.line();
  assertEquals(await cog.tryLock(), null);
  await holder.go();
  (await soon(cog.lock()))();
});

Deno.test("lock() rejects if its signal is aborted at any moment before it settles", async () => {
  await using cog = await openTemp();
  for (let ticks = 0; ticks < 3; ticks++) {
    const controller = new AbortController();
    const abandoned = cog.lock(controller);
    for (let i = 0; i < ticks; i++) await null;
    controller.abort("reason");
    assertEquals(await abandoned.catch((reason) => reason), "reason");
    (await cog.tryLock())!();
  }
});

Deno.test("lock() rejects with the signal's reason", async () => {
  await using cog = await openTemp();
  using _lock = await cog.lock();
  const controller = new AbortController();
  const waiter = cog.lock({ signal: controller.signal });
  controller.abort("reason");
  assertEquals(await waiter.catch((reason) => reason), "reason");
  const aborted = cog.lock({ signal: AbortSignal.abort("at once") });
  assertEquals(await aborted.catch((reason) => reason), "at once");
});

Deno.test(
  "lock() leaves nothing attached to the signal: a script ends at once",
  async () => {
    using dir = scene();
    await using child = script(
      `await using cog = await open(args[0]);
     const signal = AbortSignal.timeout(600_000);
     const first = await cog.lock({ signal });
     const second = cog.lock({ signal });
     first();
     (await second)();
     console.log("released");
     await heard();
     await cog.lock({ signal: AbortSignal.timeout(50) })
       .catch((error) => console.log(error.name));`,
      [dir.path],
    );
    assertEquals(await child.line(), "released");
    await using holder = stranger(resolve(dir.path, ".cog", "cog.lock"));
    await holder.line();
    await child.go();
    assertEquals(await child.line(), "TimeoutError");
    assertEquals((await child.ended()).code, 0);
  },
);

Deno.test("lock() says it if .cog was deleted", async () => {
  await using cog = await openTemp();
  Deno.removeSync(cog.root, { recursive: true });
  for (const acquire of [() => cog.lock(), () => cog.tryLock()]) {
    await assertRejects(acquire, Deno.errors.NotFound, cog.root);
  }
});

// Closing

Deno.test("close() runs the cleanups in reverse order, each after the last", async () => {
  const cog = await openTemp();
  const order: string[] = [];
  cog.defer(() => void order.push("first"));
  const scratch = await cog.tempPath("build");
  cog.defer(async () => {
    assertEquals(exists(scratch), true);
    await Promise.resolve();
    order.push("second");
  });
  cog.defer(() => {
    order.push("third");
  });
  await cog.close();
  assertEquals(order, ["third", "second", "first"]);
  assertEquals(exists(scratch), false);
});

Deno.test("close() runs all cleanups though some fail, and loses no error", async () => {
  const cog = await openTemp();
  const errors = [new Error("a"), new RangeError("b"), new TypeError("c")];
  for (const error of errors) {
    cog.defer(() => Promise.reject(error));
  }
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
  const calls = [cog.close(), cog.close(), cog[Symbol.asyncDispose]()];
  for (const call of calls) await assertRejects(() => call, RangeError, "once");
  await assertRejects(() => cog.close(), RangeError, "once");
  assertEquals(runs, 1);
});

Deno.test("close() holds the lock during the cleanups, then releases it", async () => {
  await using outer = await openTemp();
  const path = resolve(outer.root, "cog.lock");
  const cog = await open(outer.projectDir);
  const release = await cog.lock();
  let held;
  cog.defer(async () => {
    await Promise.resolve();
    held = !isFree(path);
  });
  await cog.close();
  assertEquals(held, true);
  assertEquals(isFree(path), true);
  release();
});

Deno.test("close() releases the lock even if a cleanup fails", async () => {
  await using outer = await openTemp();
  const cog = await open(outer.projectDir);
  await cog.tryLock();
  cog.defer(() => {
    throw new Error("no");
  });
  await assertRejects(() => cog.close());
  (await outer.tryLock())!();
});

Deno.test("a closed Dir refuses every call, and makes nothing", async () => {
  await using outer = await openTemp();
  const cog = await open(outer.projectDir);
  const before = names(cog.root);
  let during: unknown;
  cog.defer(async () => {
    during = await cog.path("x").catch((error) => error);
  });
  await cog.close();
  assert(during instanceof Deno.errors.BadResource);
  const calls = [
    () => cog.path("x"),
    () => cog.filePath("x/y"),
    () => cog.tempPath("x"),
    () => cog.lock(),
    () => cog.tryLock(),
  ];
  for (const call of calls) {
    await assertRejects(call, Deno.errors.BadResource, cog.root);
  }
  assertThrows(() => cog.defer(() => {}), Deno.errors.BadResource, cog.root);
  assertEquals(names(cog.root), before);
});

for (const signal of [undefined, new AbortController().signal]) {
  const kind = signal ? "with" : "without";

  Deno.test(`a lock() ${kind} a signal that waits for this process rejects on close, and is not held`, async () => {
    await using outer = await openTemp();
    const release = await outer.lock();
    const cog = await open(outer.projectDir);
    const waiter = cog.lock({ signal });
    await cog.close();
    await assertRejects(() => soon(waiter), Deno.errors.BadResource, "closed");
    release();
    (await soon(outer.lock()))();
    (await outer.tryLock())!();
  });

  Deno.test(
    `a lock() ${kind} a signal that waits for another process rejects on close, and is not held`,
    async () => {
      await using outer = await openTemp();
      const path = resolve(outer.root, "cog.lock");
      await using holder = stranger(path);
      await holder.line();
      const cog = await open(outer.projectDir);
      const { promise: told, resolve: onWait } = Promise.withResolvers<void>();
      const waiter = cog.lock({ signal, onWait });
      await told;
      await cog.close();
      await assertRejects(() => waiter, Deno.errors.BadResource, "closed");
      await holder.go();
      await holder.ended();
      await until(() => isFree(path));
      (await soon(outer.lock()))();
    },
  );
}

Deno.test("a lock() whose own onWait closes its Dir does not wait in the operating system", async () => {
  await using outer = await openTemp();
  const path = resolve(outer.root, "cog.lock");
  using holder = Deno.openSync(path, { write: true, create: true });
  holder.lockSync(true);
  const cog = await open(outer.projectDir);
  let waits = 0;
  using _ = replace(Deno.FsFile.prototype, "lock", () => {
    waits++;
    return Promise.resolve();
  });
  const waiter = cog.lock({ onWait: () => void cog.close() });
  await assertRejects(() => waiter, Deno.errors.BadResource, "closed");
  assertEquals(waits, 0);
});

Deno.test("close() of an openTemp() that holds the lock, with waiters behind, removes it", async () => {
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

Deno.test("close() from within a cleanup has the same outcome", async () => {
  await using outer = await openTemp();
  const cog = await open(outer.projectDir);
  cog.defer(() => {
    throw new RangeError("once");
  });
  let inner: Promise<void>;
  cog.defer(() => {
    inner = cog.close();
    inner.catch(() => {});
  });
  await assertRejects(() => cog.close(), RangeError, "once");
  await assertRejects(() => inner, RangeError, "once");
});

Deno.test("tempPath() that is under way when its Dir closes rejects, and leaves nothing", async () => {
  await using outer = await openTemp();
  const cog = await open(outer.projectDir);
  Deno.writeTextFileSync(await cog.filePath("build/file"), "");
  const { remove } = Deno;
  using _ = replace(Deno, "remove", async (path, options) => {
    Deno.remove = remove;
    await delay(50); // what is wiped, unlike the scratch, has many files
    await remove(path, options);
  });
  const scratch = cog.tempPath("build");
  const refused = assertRejects(() => scratch, Deno.errors.BadResource);
  await cog.close();
  assertEquals(names(outer.root), [".gitignore"]);
  await refused;
});

Deno.test("a lock() or tryLock() that is granted just as its Dir closes is not held", async () => {
  await using outer = await openTemp();
  for (const method of ["lock", "tryLock"] as const) {
    const cog = await open(outer.projectDir);
    const acquired = cog[method]();
    const closed = cog.close();
    await assertRejects(() => acquired, Deno.errors.BadResource);
    await closed;
    (await outer.tryLock())!();
  }
});

// 1. Names

const ESCAPES = [
  "/",
  "/etc/passwd",
  "//x",
  "..",
  "../",
  "../x",
  "./../x",
  "a/../../x",
  "a/b/../../../x",
  "../.cog/x",
  "c:",
  "C:x",
  "c:/x",
  "C:\\x",
  "a\0b",
  "\0",
  ...(WINDOWS ? ["\\x", "..\\x", "a\\..\\..\\x", "\\\\host\\share"] : []),
];
const ROOTS = ["", ".", "./", "./.", "a/..", "a/../."];
const RESERVED = `.scratch-old-${crypto.randomUUID()}`;
const LOCKS = [
  "cog.lock",
  "./cog.lock",
  "cog.lock/x",
  "a/../cog.lock",
  "COG.Lock",
];

Deno.test("1: names that lead out of .cog are refused, before anything is touched", async () => {
  await using cog = await openTemp();
  const before = names(cog.root);
  const beside = names(cog.projectDir);
  for (const name of [...ESCAPES, ...LOCKS, RESERVED, `a/${RESERVED}`]) {
    for (const method of ["path", "filePath", "tempPath"] as const) {
      await assertRejects(() => cog[method](name), TypeError, `"${name}"`);
    }
  }
  for (const name of ROOTS) {
    assertEquals(await cog.path(name), cog.root);
    for (const method of ["filePath", "tempPath"] as const) {
      await assertRejects(() => cog[method](name), TypeError, `"${name}"`);
    }
  }
  assertEquals(names(cog.root), before);
  assertEquals(names(cog.projectDir), beside);
});

Deno.test("1: spaces, dots, unicode, dashes and stars are ordinary", async () => {
  await using cog = await openTemp();
  const ordinary = [
    "a b",
    ".hidden",
    "a.b.c",
    "é…",
    "-rf",
    "cog.lock2",
    "a/cog.lock",
  ]
    .concat(WINDOWS ? [] : ["*", "...", "a\\..\\..\\x", " ", "ab:c", "\\"]);
  for (const name of ordinary) {
    const parts = name.split("/");
    const expected = resolve(cog.root, ...parts);
    assertEquals(await cog.path(name), expected);
    assertEquals(
      await cog.filePath(`f/${name}`),
      resolve(cog.root, "f", ...parts),
    );
    assertEquals(
      await cog.tempPath(`t/${name}`),
      resolve(cog.root, "t", ...parts),
    );
    assertEquals(exists(expected), true);
  }
});

Deno.test("1: a name that Windows takes for another one is refused there", {
  ignore: !WINDOWS,
}, async () => {
  await using cog = await openTemp();
  for (
    const name of ["cog.lock.", "cog.lock ", "ab:c", "...", "x/... ", "a./b"]
      .concat("nul", "a/COM1", "Lpt9.txt/b", "aux .c")
  ) {
    await assertRejects(
      () => cog.path(name),
      TypeError,
      `"${name}" is another`,
    );
  }
  for (const name of ["null", "com", "com10", "a.nul"]) await cog.path(name);
});

Deno.test("1: ten thousand random names stay inside, and sentinels around survive", async () => {
  using dir = scene();
  await using cog = await open(resolve(dir.path, "project"));
  const lockFile = resolve(cog.root, "cog.lock");
  const sentinels = [
    resolve(dir.path, "above"),
    resolve(cog.projectDir, "beside"),
    resolve(cog.projectDir, "x"),
    lockFile,
  ];
  for (const sentinel of sentinels) Deno.writeTextFileSync(sentinel, "here");
  const pieces = ["..", ".", "cog.lock", "C:", "a", "b c", "x", "", "é"];
  const separators = ["/", "/", "\\", "//"];
  const pick = <T>(from: T[]) => from[Math.floor(Math.random() * from.length)];
  let refused = 0;
  for (let i = 0; i < 10_000; i++) {
    let name = pick(pieces);
    for (let n = Math.random() * 5; n > 1; n--) {
      name += pick(separators) + pick(pieces);
    }
    const method = pick(["path", "filePath", "tempPath"] as const);
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
  for (const sentinel of sentinels) {
    assertEquals(Deno.readTextFileSync(sentinel), "here");
  }
});

// 2. Symbolic links

Deno.test("2: open(), path() and filePath() follow symbolic links", {
  ignore: !CAN_LINK,
}, async () => {
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
  const scratch = await cog.tempPath("build");
  assertEquals(scratch, resolve(project, ".cog", "build"));
  assertEquals(names(resolve(disk, "cog")), ["build", "cache", "cog.lock"]);
});

Deno.test("2: tempPath() refuses a way that leads through a symbolic link", {
  ignore: !CAN_LINK,
}, async () => {
  using dir = scene();
  await using cog = await open(resolve(dir.path, "project"));
  const outside = resolve(dir.path, "outside");
  Deno.mkdirSync(resolve(outside, "build"), { recursive: true });
  Deno.writeTextFileSync(resolve(outside, "build", "file"), "kept");
  Deno.symlinkSync(outside, resolve(cog.root, "cache"));
  Deno.mkdirSync(resolve(cog.root, "a"));
  Deno.symlinkSync("..", resolve(cog.root, "a", "up"));
  for (
    const name of ["cache/build", "cache/new", "cache/new/x", "a/up/cog.lock"]
  ) {
    await assertRejects(
      () => cog.tempPath(name),
      Deno.errors.NotADirectory,
      "symbolic link",
    );
  }
  assertEquals(names(outside), ["build"]);
  assertEquals(names(resolve(outside, "build")), ["file"]);
});

Deno.test(
  "2: a symbolic link at the scratch's own name is removed as a link, before and on close",
  {
    ignore: !CAN_LINK,
  },
  async () => {
    using dir = scene();
    const cog = await open(resolve(dir.path, "project"));
    const outside = resolve(dir.path, "outside");
    Deno.mkdirSync(outside);
    Deno.writeTextFileSync(resolve(outside, "file"), "kept");
    Deno.symlinkSync(outside, resolve(cog.root, "build"));
    const scratch = await cog.tempPath("build");
    assertEquals(Deno.lstatSync(scratch).isSymlink, false);
    assertEquals(names(scratch), []);
    Deno.symlinkSync(outside, resolve(scratch, "link"));
    await cog.close();
    assertEquals(names(cog.root), [".gitignore"]);
    assertEquals(names(outside), ["file"]);
  },
);

// 3. Scratch is only ever ours

Deno.test("3: a scratch that another made anew, at once and by name, stays with its files", async () => {
  await using outer = await openTemp();
  for (let i = 0; i < 200; i++) {
    const cog = await open(outer.projectDir);
    const scratch = await cog.tempPath(`build${i}`);
    // The same inode number in the same millisecond, unless something keeps it.
    Deno.removeSync(scratch, { recursive: true });
    Deno.mkdirSync(scratch);
    Deno.writeTextFileSync(resolve(scratch, "theirs"), "");
    await cog.close();
    assertEquals(names(scratch), ["theirs"]);
  }
});

Deno.test("3: a scratch that another Dir took since stays with its files, and goes when that closes", async () => {
  await using outer = await openTemp();
  const a = await open(outer.projectDir);
  const b = await open(outer.projectDir);
  await a.tempPath("build");
  const scratch = await b.tempPath("build");
  Deno.writeTextFileSync(resolve(scratch, "theirs"), "");
  await a.close();
  assertEquals(names(scratch), ["theirs"]);
  await b.close();
  assertEquals(names(outer.root), [".gitignore"]);
});

Deno.test(
  "3: a scratch that was moved away or replaced by a link is nobody's business on close",
  {
    ignore: !CAN_LINK,
  },
  async () => {
    await using outer = await openTemp();
    const cog = await open(outer.projectDir);
    const moved = resolve(outer.root, "moved");
    Deno.renameSync(await cog.tempPath("a"), moved);
    const linked = await cog.tempPath("b");
    Deno.removeSync(linked);
    Deno.symlinkSync(moved, linked);
    Deno.writeTextFileSync(resolve(moved, "file"), "kept");
    await cog.close();
    assertEquals(names(outer.root), [".gitignore", "b", "moved"]);
    assertEquals(names(moved), ["file"]);
  },
);

Deno.test("3: a scratch that is replaced in the very instant of the close is put back, with its files", async () => {
  await using outer = await openTemp();
  const cog = await open(outer.projectDir);
  const scratch = await cog.tempPath("build");
  const { renameSync } = Deno;
  {
    using _ = replace(Deno, "renameSync", (from, to) => {
      Deno.renameSync = renameSync;
      Deno.removeSync(scratch);
      Deno.mkdirSync(scratch);
      Deno.writeTextFileSync(resolve(scratch, "theirs"), "");
      renameSync(from, to);
    });
    await cog.close();
  }
  assertEquals(names(outer.root), [".gitignore", "build"]);
  assertEquals(names(scratch), ["theirs"]);
});

Deno.test("3: a scratch that another closing process moves away by mistake, just as it is placed, is not swept", async () => {
  await using cog = await openTemp();
  const scratch = resolve(cog.root, "build");
  const mistaken = resolve(cog.root, `.scratch-new-${crypto.randomUUID()}`);
  const { renameSync } = Deno;
  {
    using _ = replace(Deno, "renameSync", (from, to) => {
      renameSync(from, to);
      if (to === scratch) renameSync(scratch, mistaken);
    });
    await cog.tempPath("build");
  }
  renameSync(mistaken, scratch); // as that process does, once it sees
});

Deno.test(
  "3: where no directory can be kept open, a scratch is told by its birth time, too",
  {
    ignore: !HAS_BIRTH_TIMES || WINDOWS,
  },
  async () => {
    await using outer = await openTemp();
    const cog = await open(outer.projectDir);
    using _ = replace(Deno, "openSync", () => {
      throw new Deno.errors.PermissionDenied("as on other systems");
    });
    await cog.tempPath("ours");
    const theirs = await cog.tempPath("theirs");
    const { birthtime } = Deno.statSync(theirs);
    await until(() => { // the same inode number, maybe, but not the same time
      Deno.removeSync(theirs);
      Deno.mkdirSync(theirs);
      const { birthtime: now } = Deno.statSync(theirs);
      return now?.getTime() !== birthtime?.getTime();
    });
    await cog.close();
    assertEquals(names(outer.root), [".gitignore", "theirs"]);
  },
);

Deno.test("3: a scratch whose making fails leaves what was there, and nothing of its own", async () => {
  await using cog = await openTemp();
  const file = await cog.filePath("build/file");
  Deno.writeTextFileSync(file, "kept");
  {
    using _ = replace(Deno, "renameSync", () => {
      throw new Deno.errors.PermissionDenied("as on a disk of somebody else");
    });
    await assertRejects(
      () => cog.tempPath("build"),
      Deno.errors.PermissionDenied,
      `Cannot make scratch ${resolve(cog.root, "build")}`,
    );
  }
  assertEquals(Deno.readTextFileSync(file), "kept");
  assertEquals(names(cog.root), [".gitignore", "build"]);
});

Deno.test("3: a scratch whose last step fails puts back what was there", async () => {
  await using cog = await openTemp();
  const file = await cog.filePath("build/file");
  Deno.writeTextFileSync(file, "kept");
  const { renameSync } = Deno;
  {
    using _ = replace(Deno, "renameSync", (from, to) => {
      if (`${from}`.includes("-new-")) {
        throw new Deno.errors.PermissionDenied("as on a strange disk");
      }
      renameSync(from, to);
    });
    await assertRejects(
      () => cog.tempPath("build"),
      Deno.errors.PermissionDenied,
    );
  }
  assertEquals(Deno.readTextFileSync(file), "kept");
  assertEquals(names(cog.root), [".gitignore", "build"]);
});

const OTHERS = {
  "this library": `
    for (;;) {
      await using cog = await open(args[0]);
      {
        using _lock = await cog.lock();
        await use(await cog.tempPath("build"));
      }
    }`,
  "remove and recreate, as Go does": `
    const cog = await open(args[0]);
    const build = cog.root + "/build";
    for (;;) {
      using _lock = await cog.lock();
      await Deno.remove(build, { recursive: true }).catch(() => {});
      await Deno.mkdir(build);
      await use(build);
    }`,
};
for (const [kind, code] of Object.entries(OTHERS)) {
  Deno.test(`3: a process that closes after its release leaves what the next one stages, with ${kind}`, async () => {
    using dir = scene();
    // What it writes must all be there until it lets go of the lock, though the
    // directory may vanish for a moment, see the README.
    const use = `
      const there = async (attempt) => {
        for (let tries = 1;; tries++) {
          try {
            return attempt();
          } catch (error) {
            const gone = error instanceof Deno.errors.NotFound;
            if (!gone || tries === 1000) throw error;
            await new Promise((resolve) => setTimeout(resolve, 1));
          }
        }
      };
      let rounds = 0;
      const use = async (build) => {
        for (let i = 0; i < 10; i++) {
          const names = await there(() => {
            Deno.writeTextFileSync(build + "/" + i, "");
            return [...Deno.readDirSync(build)].length;
          });
          if (names !== i + 1) {
            console.log(names + " of " + (i + 1));
            Deno.exit(1);
          }
        }
        if (++rounds % 10 === 0) console.log("ok");
      };`;
    const peers = [
      script(use + code, [dir.path]),
      script(use + OTHERS["this library"], [dir.path]),
      script(use + OTHERS["this library"], [dir.path]),
    ];
    await using stack = new AsyncDisposableStack();
    for (const peer of peers) stack.use(peer);
    stack.defer(() => peers.forEach((peer) => peer.kill()));
    for (const peer of peers) {
      for (let i = 0; i < 12; i++) assertEquals(await peer.line(), "ok");
    }
  });
}

Deno.test("3: processes that take one scratch without the lock leave nothing behind", async () => {
  using dir = scene();
  const code = `
    for (let i = 0; i < 200; i++) {
      await using cog = await open(args[0]);
      const build = await cog.tempPath("build");
      await Deno.writeTextFile(build + "/" + i, "").catch(() => {});
    }
    console.log("done");`;
  await using a = script(code, [dir.path]);
  await using b = script(code, [dir.path]);
  assertEquals(await a.line(), "done");
  assertEquals(await b.line(), "done");
  await Promise.all([a.ended(), b.ended()]);
  await using cog = await open(dir.path);
  await cog.tempPath("other");
  assertEquals(names(cog.root), [".gitignore", "other"]);
});

Deno.test("3: what a killed wipe leaves is not at the scratch's name, and the next one sweeps it", async () => {
  using dir = scene();
  const fill = `
    const cog = await open(args[0]);
    const build = await cog.tempPath("build");
    for (let i = 0; i < 1000; i++) Deno.writeTextFileSync(build + "/" + i, "");`;
  let halves = 0;
  for (let i = 0; i < 20 && halves < 3; i++) {
    await using child = script(
      `${fill} console.log("full"); cog.close(); await heard();`,
      [dir.path],
    );
    await child.line();
    const build = resolve(dir.path, ".cog", "build");
    await until(() => !exists(build));
    child.kill("SIGKILL");
    await child.ended();
    assertEquals(exists(build), false);
    halves += names(resolve(dir.path, ".cog")).length - 1;
    // Two processes sweep it at the same time.
    const sweep = `const cog = await open(args[0]);
      console.log("ready"); await heard();
      await cog.tempPath("other" + Deno.pid); await cog.close();
      console.log("done");`;
    await using a = script(sweep, [dir.path]);
    await using b = script(sweep, [dir.path]);
    for (const peer of [a, b]) assertEquals(await peer.line(), "ready");
    await Promise.all([a.go(), b.go()]);
    for (const peer of [a, b]) assertEquals(await peer.line(), "done");
    assertEquals(names(resolve(dir.path, ".cog")), [".gitignore"]);
  }
  assert(halves > 0, "no wipe was caught in the act");
});

Deno.test("3: a process killed anywhere in its work leaves nothing that stays", async () => {
  using dir = scene();
  for (let i = 0; i < 10; i++) {
    await using child = script(
      `const cog = await open(args[0]);
       console.log("started");
       for (;;) await cog.tempPath("build");`,
      [dir.path],
    );
    await child.line();
    child.kill("SIGKILL");
    await child.ended();
  }
  {
    await using cog = await open(dir.path);
    const id = crypto.randomUUID();
    const { now } = Date; // what is not certain to be nobody's stays an hour
    using _ = replace(Date, "now", () => now() + 61 * 60 * 1000);
    for (const state of ["new", "old"]) {
      Deno.mkdirSync(resolve(cog.root, `.scratch-${state}-${id}`));
      Deno.mkdirSync(resolve(cog.root, `.scratch-${state}-not-a-uuid`));
    }
    await cog.tempPath("build");
  }
  assertEquals(names(resolve(dir.path, ".cog")), [
    ".gitignore",
    ".scratch-new-not-a-uuid",
    ".scratch-old-not-a-uuid",
  ]);
});

Deno.test("3: what a killed close set aside is swept after an hour", async () => {
  await using cog = await openTemp();
  const aside = resolve(cog.root, `.scratch-new-${crypto.randomUUID()}`);
  Deno.mkdirSync(resolve(aside, "sub"), { recursive: true });
  const { now } = Date;
  for (const minutes of [59, 61]) {
    using _ = replace(Date, "now", () => now() + minutes * 60 * 1000);
    await cog.tempPath("build");
    assertEquals(exists(aside), minutes < 60);
  }
});

Deno.test("3: a new scratch of another process that is about to be placed is not swept with its files", async () => {
  await using cog = await openTemp();
  const fresh = resolve(cog.root, `.scratch-new-${crypto.randomUUID()}`);
  Deno.mkdirSync(fresh);
  Deno.writeTextFileSync(resolve(fresh, "file"), "");
  await cog.tempPath("build");
  assertEquals(names(fresh), ["file"]);
  Deno.removeSync(resolve(fresh, "file"));
  await cog.tempPath("build");
  assertEquals(exists(fresh), true);
});

Deno.test(
  "3: a scratch that a container image brought along is wiped, though it cannot be renamed",
  {
    ignore: !CAN_MOUNT,
  },
  async () => {
    using dir = scene();
    const under = ["unshare", "-m", "sh", "-c"].concat(
      // On a disk of its own: an overlay cannot be made of parts of another one.
      `mount -t tmpfs none "$0" && cd "$0" &&
     mkdir -p lower/.cog/build upper work merged &&
     touch lower/.cog/build/file && mount -t overlay -o \\
       lowerdir=lower,upperdir=upper,workdir=work overlay merged || exit
     exec "$@"`,
      dir.path,
    );
    await using child = script(
      `await using cog = await open(args[0]);
     console.log([...Deno.readDirSync(await cog.tempPath("build"))].length);
     await cog.close();
     console.log([...Deno.readDirSync(cog.root)].length);`,
      [resolve(dir.path, "merged")],
      undefined,
      { under },
    );
    for (let i = 0; i < 2; i++) assertEquals(await child.line(), "0");
    await child.ended();
  },
);

// 4. On the way out

for (
  const [how, code] of [
    ["at Deno.exit()", "Deno.exit(0);"],
    ["at the end of a script that forgot to close", ""],
    [
      "at the end of a script that exits while it closes",
      "cog.close(); temp.close(); for (let i = 0; i < 20; i++) await null; Deno.exit(0);",
    ],
  ]
) {
  Deno.test(`4: scratch and temporary roots are removed ${how}`, async () => {
    using dir = scene();
    await using child = script(
      `const cog = await open(args[0]);
       const temp = await openTemp();
       const scratch = await cog.tempPath("build");
       await cog.tempPath("build");
       for (const path of [scratch, temp.root]) {
         for (let i = 0; i < 50; i++) Deno.writeTextFileSync(path + "/" + i, "");
       }
       const theirs = await cog.tempPath("theirs");
       Deno.removeSync(theirs);
       Deno.mkdirSync(theirs);
       console.log(temp.projectDir);
       ${code}`,
      [dir.path],
    );
    const temp = await child.line();
    assertEquals((await child.ended()).code, 0);
    assertEquals(exists(temp), false);
    assertEquals(names(resolve(dir.path, ".cog")), [".gitignore", "theirs"]);
  });
}

Deno.test("4: an exit in the middle of a close removes what that was removing", async () => {
  using dir = scene();
  const cog = await open(dir.path);
  Deno.mkdirSync(resolve(await cog.tempPath("build"), "sub"));
  let left: string[] | undefined;
  {
    using _ = replace(Deno, "remove", () => {
      dispatchEvent(new Event("unload"));
      left = names(cog.root);
      return Promise.reject(new Deno.errors.NotFound("as it is by now"));
    });
    await cog.close();
  }
  assertEquals(left, [".gitignore"]);
});

Deno.test("4: nothing is registered before there is something to remove, nor after close", async () => {
  using dir = scene();
  await using child = script(
    `const listeners = new Map();
     const { addEventListener, removeEventListener } = globalThis;
     globalThis.addEventListener = (type, listener) => {
       listeners.set(listener, type);
       addEventListener(type, listener);
     };
     globalThis.removeEventListener = (type, listener) => {
       listeners.delete(listener);
       removeEventListener(type, listener);
     };
     Deno.addSignalListener = () => listeners.set("signal", "signal");
     const show = () => console.log([...listeners.values()].join());
     const cog = await open(args[0]);
     await cog.path("a");
     (await cog.lock())();
     show();
     await cog.tempPath("a");
     await cog.tempPath("b");
     show();
     await cog.close();
     show();`,
    [dir.path],
  );
  assertEquals(await child.line(), "");
  assertEquals(await child.line(), "unload");
  assertEquals(await child.line(), "");
});

Deno.test("4: with the README's two lines, Ctrl-C cleans up", {
  ignore: WINDOWS, // which has Ctrl-C, but no process can send it to another
}, async () => {
  using dir = scene();
  await using child = script(
    `const stop = () => Deno.exit(130);
     Deno.addSignalListener("SIGINT", stop);
     await using cog = await open(args[0]);
     await cog.tempPath("build");
     await using temp = await openTemp();
     console.log(temp.projectDir);
     await heard();`,
    [dir.path],
  );
  const temp = await child.line();
  child.kill("SIGINT");
  assertEquals((await child.ended()).code, 130);
  assertEquals(names(resolve(dir.path, ".cog")), [".gitignore"]);
  assertEquals(exists(temp), false);
});

// 5. Closing is thorough

Deno.test(
  "5: a scratch that cannot be removed is reported by its path, and the others go",
  {
    ignore: !IS_ROOT || !has("chattr"),
  },
  async () => {
    await using outer = await openTemp();
    const cog = await open(outer.projectDir);
    await cog.tempPath("a");
    const stuck = await cog.tempPath("b");
    await cog.tempPath("c");
    const file = resolve(stuck, "file");
    Deno.writeTextFileSync(file, "");
    const chattr = (flag: string, path: string) =>
      new Deno.Command("chattr", { args: [flag, path] }).outputSync().success;
    const stuckToo = await cog.tempPath("d");
    assertEquals(chattr("+i", file), true);
    assertEquals(chattr("+i", stuckToo), true);
    const thrown = await cog.close().catch((error) => error);
    const [, left, ...rest] = names(outer.root);
    assertEquals(chattr("-i", resolve(outer.root, left, "file")), true);
    assertEquals(chattr("-i", stuckToo), true);
    assertEquals(rest, ["d"]);
    assert(thrown instanceof SuppressedError);
    for (
      const [error, path] of [
        [thrown.error, stuck],
        [thrown.suppressed, stuckToo],
      ]
    ) {
      assert(error.message.startsWith(`Cannot remove ${path}: `), error);
      assertEquals(error.constructor, error.cause.constructor);
    }
  },
);

Deno.test("5: what is gone already is not an error", async () => {
  const outer = await openTemp();
  const cog = await open(outer.projectDir);
  Deno.removeSync(await cog.tempPath("build"));
  for (const name of ["a", "b"]) {
    await cog.tempPath(`${name}/scratch`);
    Deno.removeSync(resolve(cog.root, name), { recursive: true });
  }
  Deno.writeTextFileSync(resolve(cog.root, "b"), "a file now");
  await cog.close();
  Deno.removeSync(outer.projectDir, { recursive: true });
  await outer.close();
});

// 6. Errors keep their class and gain their context

Deno.test("6: open() on a .cog that is a file, or below a file, keeps the class and gains the path", async () => {
  using dir = scene();
  const root = resolve(dir.path, ".cog");
  Deno.writeTextFileSync(root, "kept");
  const error = await assertRejects(
    () => open(dir.path),
    Deno.errors.AlreadyExists,
    `Cannot make ${root}`,
  );
  assert(error.cause instanceof Deno.errors.AlreadyExists);
  // Windows says that the path is not found, whatever is the matter with it.
  const Class = WINDOWS ? Error : Deno.errors.NotADirectory;
  await assertRejects(() => open(root), Class, root);
  await assertRejects(() => open(resolve(root, "x")), Class, root);
  assertEquals(Deno.readTextFileSync(root), "kept");
});

Deno.test("6: path(), filePath() and tempPath() through a file keep the class and gain the path", async () => {
  await using cog = await openTemp();
  const file = await cog.filePath("file");
  Deno.writeTextFileSync(file, "kept");
  await assertRejects(() => cog.path("file"), Deno.errors.AlreadyExists, file);
  for (const method of ["path", "filePath", "tempPath"] as const) {
    const { AlreadyExists, NotADirectory } = Deno.errors;
    const Class = WINDOWS ? AlreadyExists : NotADirectory;
    const error = await assertRejects(
      () => cog[method]("file/x/y"),
      Class,
      file,
    );
    assert(error.cause instanceof Class);
  }
  assertEquals(Deno.readTextFileSync(file), "kept");
});

Deno.test("6: open() without permission keeps the class and gains the path", async () => {
  using dir = scene();
  await using child = script(
    `await open(args[0]).catch((error) => console.log(error.name, error.message,
       error.cause instanceof Deno.errors.NotCapable));`,
    [dir.path],
    [`--allow-read=${dir.path}`],
  );
  const line = await child.line();
  assert(line.startsWith(`NotCapable Cannot make ${dir.path}`), line);
  assert(line.endsWith("true"), line);
  assertEquals(names(dir.path), []);
});

Deno.test("6: open() on a NUL is refused", async () => {
  await assertRejects(() => open("a\0b"), TypeError);
});

for (
  const [disk, options, error] of [
    ["read-only", "ro", "Read-only file system"],
    ["full", "size=4k,nr_inodes=2", "No space left on device"],
  ]
) {
  Deno.test(`6: open() on a ${disk} disk keeps the error and gains the path`, {
    ignore: !CAN_MOUNT,
  }, async () => {
    using dir = scene();
    const under = ["unshare", "-m", "sh", "-c"]
      .concat('mount -t tmpfs -o "$0" none "$1"; shift; exec "$@"')
      .concat(options, dir.path);
    await using child = script(
      `await open(args[0]).catch((error) => {
         console.log(error.message);
         console.log(error.cause.message);
       });
       console.log([...Deno.readDirSync(args[0])].length);`,
      [dir.path],
      undefined,
      { under },
    );
    const message = await child.line();
    assert(message.startsWith(`Cannot `), message);
    assert(message.includes(resolve(dir.path, ".cog")), message);
    assert(message.includes(error), message);
    assert((await child.line()).includes(error));
    assertEquals(await child.line(), "0");
    await child.ended();
  });
}

Deno.test("6: open() that cannot write all of .gitignore leaves nothing", async () => {
  using dir = scene();
  using _ = replace(Deno, "writeTextFileSync", (path) => {
    Deno.createSync(path).close();
    throw new Error("No space left on device");
  });
  const ignore = resolve(dir.path, ".cog", ".gitignore");
  await assertRejects(() => open(dir.path), Error, `Cannot write ${ignore}`);
  assertEquals(names(dir.path), []);
});

Deno.test("6: openTemp() on a full disk keeps the error, and leaves nothing", {
  ignore: !CAN_MOUNT,
}, async () => {
  using dir = scene();
  const under = ["unshare", "-m", "sh", "-c"]
    .concat('mount -t tmpfs -o nr_inodes=2 none "$0"; exec "$@"', dir.path);
  await using child = script(
    `await openTemp().catch((error) => console.log(error.message));
     console.log([...Deno.readDirSync(args[0])].length);`,
    [dir.path],
    undefined,
    { under, env: { TMPDIR: dir.path } },
  );
  assert((await child.line()).includes("No space left on device"));
  assertEquals(await child.line(), "0");
  await child.ended();
});

// 7. Least permission

for (const granted of ["the project", "no more than .cog"]) {
  Deno.test(`7: everything but openTemp() works with reading and writing ${granted}`, async () => {
    using dir = scene();
    const root = resolve(dir.path, ".cog");
    const path = granted === "the project" ? dir.path : root;
    await using child = script(
      `{
         await using cog = await open(args[0]);
         await cog.path("a/b");
         await cog.filePath("c/d");
         await cog.tempPath("build");
         await cog.tempPath("build");
         await cog.tempPath("x/y");
         (await cog.lock())();
         (await cog.tryLock())();
         (await lock(cog.root + "/a/other.lock"))();
         (await tryLock(cog.root + "/a/other.lock"))();
       }
       const cog = await open(args[0]);
       await cog.tempPath("left open");
       console.log(await openTemp().catch((error) =>
         error.name + ": " + error.message));`,
      [dir.path],
      [`--allow-read=${path}`, `--allow-write=${path}`],
    );
    assert(
      (await child.line())
        .startsWith("NotCapable: Cannot make a temporary directory: "),
    );
    assertEquals((await child.ended()).code, 0);
    assertEquals(names(root), [".gitignore", "a", "c", "cog.lock", "x"]);
  });
}

Deno.test(
  "7: behind a symbolic link, permission for where it really is is needed, and asked for",
  {
    ignore: !CAN_LINK || WINDOWS,
  },
  async () => {
    using dir = scene();
    const link = resolve(dir.path, "link");
    const real = resolve(dir.path, "real");
    Deno.mkdirSync(real);
    Deno.symlinkSync(real, link);
    for (
      const [granted, expected] of [
        [link, "NotCapable"],
        [`${link},${real}`, "a release"],
      ]
    ) {
      await using child = script(
        `await using cog = await open(args[0]);
       await cog.lock().then(
         () => console.log("a release"),
         (error) => console.log(error.name),
       );`,
        [link],
        [`--allow-read=${granted}`, `--allow-write=${granted}`],
      );
      assertEquals(await child.line(), expected);
    }
  },
);

Deno.test("7: openTemp() works with reading and writing the temporary directory", async () => {
  using dir = scene();
  await using child = script(
    `{
       await using cog = await openTemp();
       await cog.tempPath("build");
       (await cog.lock())();
     }
     console.log([...Deno.readDirSync(args[0])].length);
     await openTemp();`,
    [dir.path],
    [`--allow-read=${dir.path}`, `--allow-write=${dir.path}`],
    { env: { TMPDIR: dir.path, TEMP: dir.path, TMP: dir.path } },
  );
  assertEquals(await child.line(), "0");
  assertEquals((await child.ended()).code, 0);
  assertEquals(names(dir.path), []);
});

// 8. Git does not see it

Deno.test("8: open() hides a .cog that it makes from git, and leaves others as they are", async () => {
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

Deno.test("8: open() leaves a .gitignore that another one wrote in that instant", async () => {
  using dir = scene();
  const ignore = resolve(dir.path, ".cog", ".gitignore");
  const { mkdirSync } = Deno;
  {
    using _ = replace(Deno, "mkdirSync", (path) => {
      mkdirSync(path);
      Deno.writeTextFileSync(ignore, "theirs");
    });
    await (await open(dir.path)).close();
  }
  assertEquals(Deno.readTextFileSync(ignore), "theirs");
});

Deno.test("8: git status stays clean", { ignore: !HAS_GIT }, async () => {
  using dir = scene();
  const git = async (...args: string[]) => {
    const { stdout } = await new Deno.Command("git", { args, cwd: dir.path })
      .output();
    return new TextDecoder().decode(stdout);
  };
  await git("init");
  await using cog = await open(dir.path);
  Deno.writeTextFileSync(await cog.filePath("cache/manifest.json"), "");
  using _lock = await cog.lock();
  await cog.tempPath("build");
  assertEquals(await git("status", "--porcelain"), "");
});

Deno.test("8: of several that open a new project at once, all succeed and one hides it", async () => {
  using dir = scene();
  const all = await Promise.all(
    Array.from({ length: 20 }, () => open(resolve(dir.path, "a", "b"))),
  );
  assertEquals(names(all[0].root), [".gitignore"]);
  for (const cog of all) await cog.close();
});

// 9. Fixtures

Deno.test({
  name:
    "9: openTemp() a thousand times in parallel passes the sanitizers, and leaves nothing",
  sanitizeOps: true,
  sanitizeResources: true,
  async fn() {
    const roots = await Promise.all(
      Array.from({ length: 1000 }, async (_, i) => {
        await using cog = await openTemp();
        using _lock = await cog.lock();
        const build = await cog.tempPath("build");
        await Deno.writeTextFile(resolve(build, `${i}`), "");
        return cog.projectDir;
      }),
    );
    assertEquals(new Set(roots).size, 1000);
    assertEquals(roots.filter(exists), []);
  },
});
