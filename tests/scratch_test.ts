import { assert } from "@std/assert/assert";
import { assertEquals } from "@std/assert/equals";
import { assertRejects } from "@std/assert/rejects";
import { delay } from "@std/async/delay";
import { resolve } from "@std/path/resolve";
import { clock } from "../_lock/clock.ts";
import { open, openTemp } from "../dir.ts";
import {
  CAN_LINK,
  CAN_MOUNT,
  exists,
  has,
  HAS_PROC,
  HAS_SETPRIV,
  HAS_STRACE,
  IS_ROOT,
  MOD,
  names,
  onTmpfs,
  openFiles,
  Peer,
  POWERLESS,
  replace,
  RESOLUTION,
  scene,
  script,
  soon,
  WINDOWS,
} from "./support.ts";

const {
  AlreadyExists,
  NotADirectory,
  NotFound,
  PermissionDenied,
} = Deno.errors;

const LOCK_FILE = { read: true, write: true, createNew: true };
const BINDFS = { ignore: !IS_ROOT || !has("bindfs") };
const CHATTR = { ignore: !IS_ROOT || !has("chattr") };
const MOUNTS = { ignore: !CAN_MOUNT };

/** The reserved names in a directory. */
function reserved(path: string): string[] {
  return names(path).filter((name) => name.startsWith(".scratch-"));
}

/** The path of a kind of name that only this library has. */
function reserve(root: string): string {
  return resolve(root, `.scratch-${crypto.randomUUID()}`);
}

/** The path of scratch whose owner was killed. */
function leftover(root: string): string {
  const path = reserve(root);
  Deno.mkdirSync(resolve(path, "sub"), { recursive: true });
  Deno.writeTextFileSync(`${path}.lock`, "");
  return path;
}

function run(command: string, ...args: string[]): void {
  assert(new Deno.Command(command, { args }).outputSync().success, command);
}

function chattr(flag: "+i" | "-i", path: string): void {
  run("chattr", flag, path);
}

/** Mounts one directory at another, to the end of the block. */
function bindfs(...args: string[]): Disposable {
  run("bindfs", ...args);
  return { [Symbol.dispose]: () => run("fusermount", "-u", args.at(-1)!) };
}

/** A process that shows at its end whether its scratch is as it was. */
const DOWNLOAD = `
  await using cog = await open(args[0]);
  const scratch = await cog.tempPath();
  Deno.writeTextFileSync(scratch + "/part", "");
  console.log("downloading");
  await heard();
  console.log([...Deno.readDirSync(scratch)].length);`;

// With a name

Deno.test("tempPath() deletes what has the name each time, keeps two files open, and close removes it", async () => {
  await using outer = await openTemp();
  for (const old of ["x/staging/deep/file", "x/staging"]) {
    Deno.writeTextFileSync(await outer.filePath(old), "");
    const cog = await open(outer.projectDir);
    for (let i = 0; i < 5; i++) {
      const path = await cog.tempPath("x/staging");
      assertEquals(path, resolve(cog.root, "x", "staging"));
      assertEquals(names(path), []);
      Deno.writeTextFileSync(resolve(path, "file"), "");
    }
    const isInside = (it: string) => it.startsWith(`${cog.root}/x/`);
    if (HAS_PROC) assertEquals(openFiles().filter(isInside).length, 2);
    await cog.close();
    assertEquals(names(resolve(cog.root, "x")), []);
  }
});

Deno.test("path(), tempPath() and lock() obey the umask", {
  ignore: WINDOWS,
}, async () => {
  using dir = scene();
  await using child = script(
    `Deno.umask(0o002);
     await using cog = await open(args[0]);
     await cog.lock();
     const lockFile = cog.root + "/cog.lock";
     for (const path of [await cog.path("p"), await cog.tempPath("t"), lockFile]) {
       console.log((Deno.statSync(path).mode & 0o777).toString(8));
     }`,
    [dir.path],
  );
  for (const it of ["775", "775", "664"]) assertEquals(await child.line(), it);
});

// Without a name

Deno.test("tempPath() without a name gives a new empty directory in .cog each time, from which a file is renamed into a cache, and close removes it", async () => {
  await using outer = await openTemp();
  const cog = await open(outer.projectDir);
  const paths = new Set<string>();
  for (let i = 0; i < 20; i++) {
    const path = await cog.tempPath();
    assertEquals(resolve(path, ".."), cog.root);
    assertEquals(names(path), []);
    Deno.writeTextFileSync(resolve(path, "file"), `${i}`);
    Deno.writeTextFileSync(resolve(path, "new"), `${i}`);
    Deno.renameSync(resolve(path, "new"), await cog.filePath("cache/file"));
    paths.add(path);
  }
  assertEquals(paths.size, 20);
  await cog.close();
  assertEquals(names(outer.root), [".gitignore", "cache"]);
  assertEquals(Deno.readTextFileSync(await outer.filePath("cache/file")), "19");
});

Deno.test("tempPath() sweeps what kills leave, nothing of a neighbour's, and deletes what has the name", async () => {
  using dir = scene();
  const root = resolve(dir.path, ".cog");
  await using neighbour = script(DOWNLOAD, [dir.path]);
  await neighbour.line();
  Deno.mkdirSync(resolve(root, ".scratch-not-a-uuid"));
  const owned = Array.from({ length: 10 }, (_, i) => `owned${i}`);
  for (let round = 0; round < 3; round++) {
    await using stack = new AsyncDisposableStack();
    const owners = owned.map((name) =>
      stack.use(script(
        `const cog = await open(args[0]);
         for (let i = 0;; i++) {
           for (const name of [undefined, args[1]]) {
             Deno.writeTextFileSync(await cog.tempPath(name) + "/file", "");
           }
           if (i === 10) console.log("at work");
         }`,
        [dir.path, name],
      ))
    );
    for (const owner of owners) await owner.line();
    for (const owner of owners) owner.kill();
    for (const owner of owners) await owner.ended();
    assert(reserved(root).length > 200, "nothing was left to sweep");
    await using cog = await open(dir.path);
    for (const name of owned) {
      assertEquals(names(await cog.tempPath(name)), []);
    }
    await cog.close();
    assertEquals(reserved(root).length, 3); // the neighbour's, and no UUID
  }
  await neighbour.go();
  assertEquals(await neighbour.line(), "1");
  await neighbour.ended();
  assertEquals(names(root), [".gitignore", ".scratch-not-a-uuid"]);
});

// Symbolic links

Deno.test("tempPath() deletes a link, and refuses a way through one", {
  ignore: !CAN_LINK,
}, async () => {
  using dir = scene();
  const cog = await open(resolve(dir.path, "project"));
  const outside = resolve(dir.path, "outside");
  Deno.mkdirSync(outside);
  Deno.writeTextFileSync(resolve(outside, "file"), "kept");
  Deno.symlinkSync(outside, resolve(cog.root, "cache"));
  Deno.mkdirSync(resolve(cog.root, "a"));
  Deno.symlinkSync("..", resolve(cog.root, "a", "up"));
  for (const name of ["cache/file", "cache/new/x", "a/up/cog.lock"]) {
    const refused = cog.tempPath(name);
    await assertRejects(() => refused, NotADirectory, "symbolic link");
  }
  const scratch = await cog.tempPath("cache");
  assertEquals(Deno.lstatSync(scratch).isSymlink, false);
  assertEquals(names(scratch), []);
  Deno.symlinkSync(outside, resolve(scratch, "link"));
  await cog.close();
  assertEquals(names(cog.root), [".gitignore", "a"]);
  assertEquals(names(outside), ["file"]);
});

// What is somebody else's

for (const disk of ["a disk", "bindfs"]) {
  Deno.test(`close() leaves scratch that another created anew, on ${disk}`, {
    ignore: disk === "bindfs" && BINDFS.ignore,
  }, async () => {
    using dir = scene();
    const [from, to] = ["from", "to"].map((name) => resolve(dir.path, name));
    for (const path of [from, to]) Deno.mkdirSync(path);
    using _mount = disk === "bindfs" ? bindfs(from, to) : undefined;
    for (let i = 0; i < 50; i++) {
      const cog = await open(to);
      const scratch = await cog.tempPath(`staging${i}`);
      // The same inode number in the same millisecond, unless something keeps it.
      Deno.removeSync(scratch, { recursive: true });
      Deno.mkdirSync(scratch);
      Deno.writeTextFileSync(resolve(scratch, "theirs"), "");
      using _ = replace(Deno, "renameSync", () => {
        throw new Error("it is moved, if only for a moment");
      });
      await cog.close();
      assertEquals(names(scratch), ["theirs"]);
    }
  });
}

Deno.test("close() leaves what was moved, and takes what is gone for removed", {
  ignore: !CAN_LINK,
}, async () => {
  const outer = await openTemp();
  const cog = await open(outer.projectDir);
  const moved = resolve(outer.root, "moved");
  Deno.renameSync(await cog.tempPath("a"), moved);
  const linked = await cog.tempPath("b");
  Deno.removeSync(linked);
  Deno.symlinkSync(moved, linked);
  const nameless = await cog.tempPath();
  Deno.renameSync(nameless, resolve(moved, "too"));
  Deno.mkdirSync(resolve(nameless, "theirs"), { recursive: true });
  for (const name of ["c", "d"]) {
    await cog.tempPath(`${name}/scratch`);
    Deno.removeSync(resolve(cog.root, name), { recursive: true });
  }
  Deno.writeTextFileSync(resolve(cog.root, "d"), "a file now");
  await cog.close();
  const base = nameless.slice(outer.root.length + 1);
  assertEquals(names(outer.root), [".gitignore", base, "b", "d", "moved"]);
  assertEquals(names(moved), ["too"]);
  assertEquals(names(nameless), ["theirs"]);
  Deno.removeSync(outer.projectDir, { recursive: true });
  await outer.close();
});

// Failures

Deno.test("tempPath() that fails tries again only if others may be the cause, and leaves what exists, and nothing of its own", async () => {
  await using cog = await openTemp();
  const file = resolve(await cog.path("staging"), "file");
  Deno.writeTextFileSync(file, "kept");
  for (
    const [call, name, Class, expected] of [
      ["mkdirSync", undefined, Error, 1],
      ["renameSync", "staging", PermissionDenied, 1],
      ["renameSync", "x", AlreadyExists, 20], // as XFS says it
      ["openSync", "x", Error, 1], // as with too many open files
      ["openSync", undefined, Error, 1],
    ] as const
  ) {
    const swept = call === "openSync" && !name ? leftover(cog.root) : "none";
    let tries = 0;
    const { openSync } = Deno;
    using _ = replace(Deno, call, (path: string | URL) => {
      if (name && `${path}`.endsWith(".lock")) {
        return openSync(path, LOCK_FILE) as never;
      }
      if (path === cog.root) return undefined as never; // which exists
      if (path === resolve(cog.root, "x")) throw new NotFound();
      if (!`${path}`.startsWith(swept)) tries++;
      throw new Class("as it may be");
    });
    const inner = await open(cog.projectDir);
    const message = "Cannot create scratch ";
    await assertRejects(() => inner.tempPath(name), Class, message);
    await inner.close();
    assertEquals(tries, expected);
  }
  const isLeft = (path: string) => path.startsWith(cog.root);
  if (HAS_PROC) assertEquals(openFiles().filter(isLeft), []);
  assertEquals(Deno.readTextFileSync(file), "kept");
  assertEquals(names(cog.root).length, 2 + 2); // with the leftover
});

Deno.test("tempPath() of a long name, below a file, read-only fails at once", {
  ignore: WINDOWS,
}, async () => {
  await using cog = await openTemp();
  Deno.writeTextFileSync(await cog.filePath("file"), "");
  let [tries, opens] = [0, 0];
  const { mkdirSync, openSync } = Deno;
  using _open = replace(Deno, "openSync", (path, options) => {
    opens++;
    return openSync(path, options);
  });
  using _ = replace(Deno, "mkdirSync", (path, options) => {
    if (++tries === 2) throw new Error("Read-only file system");
    mkdirSync(path, options);
  });
  for (const name of ["x".repeat(300), "file/x", "x"]) {
    const { message } = await cog.tempPath(name).catch((error) => error);
    const expected = `Cannot create scratch ${resolve(cog.root, name)}: `;
    assert(message.startsWith(expected), message);
  }
  assertEquals([tries, opens], [2, 4]);
  assertEquals(names(cog.root), [".gitignore", "file"]);
});

Deno.test("tempPath() deletes what a full disk does not move", async () => {
  await using cog = await openTemp();
  Deno.writeTextFileSync(await cog.filePath("staging/file"), "");
  const { renameSync } = Deno;
  using _ = replace(Deno, "renameSync", (from, to) => {
    if (exists(resolve(`${from}`, "file"))) {
      throw Object.assign(new Error("as on btrfs"), { code: "ENOSPC" });
    }
    renameSync(from, to);
  });
  assertEquals(names(await cog.tempPath("staging")), []);
});

Deno.test("tempPath() that cannot delete an old directory leaves a new one of that name", async () => {
  await using cog = await openTemp();
  const path = await cog.path("staging");
  Deno.writeTextFileSync(resolve(path, "file"), "");
  using _ = replace(Deno, "remove", () => {
    Deno.mkdirSync(path);
    return Promise.reject(new PermissionDenied("as of somebody else's file"));
  });
  await assertRejects(() => cog.tempPath("staging"), PermissionDenied, path);
  assertEquals(names(path), []);
  const [left] = reserved(cog.root);
  assertEquals(names(resolve(cog.root, left)), ["file"]);
});

Deno.test("close() and tempPath() put back what they cannot delete", {
  ignore: !HAS_SETPRIV,
}, async () => {
  using dir = scene();
  await using child = script(
    `const tell = (error) => console.log(error.name, error.code, error.message);
     const cog = await open(args[0]);
     console.log(await cog.tempPath("staging"));
     await heard();
     await cog.close().catch(tell);
     for (let i = 0; i < 3; i++) {
       await using cog = await open(args[0]);
       await cog.tempPath("staging").catch(tell);
     }`,
    [dir.path],
    undefined,
    { under: POWERLESS },
  );
  const path = await child.line();
  const theirs = resolve(path, "theirs");
  Deno.mkdirSync(theirs);
  Deno.writeTextFileSync(resolve(theirs, "file"), "");
  Deno.chownSync(theirs, 65534, 65534);
  await child.go();
  const create = "Cannot create scratch";
  for (const tried of ["Cannot remove", create, create, create]) {
    const line = await child.line();
    const expected = `PermissionDenied EACCES ${tried} ${path}: `;
    assert(line.startsWith(expected), line);
    assert(!line.includes(".scratch-"), line);
  }
  await child.ended();
  assertEquals(names(resolve(path, "..")), [".gitignore", "staging"]);
  assertEquals(names(theirs), ["file"]);
});

Deno.test("close() reports each scratch that stays", CHATTR, async () => {
  await using outer = await openTemp();
  const cog = await open(outer.projectDir);
  await cog.tempPath("a");
  const stuck = await cog.tempPath("b");
  await cog.tempPath("c");
  Deno.writeTextFileSync(resolve(stuck, "file"), "");
  const stuckToo = await cog.tempPath("d");
  chattr("+i", resolve(stuck, "file"));
  chattr("+i", stuckToo);
  const thrown = await cog.close().catch((error) => error);
  const [, left, ...rest] = names(outer.root);
  chattr("-i", resolve(outer.root, left, "file"));
  chattr("-i", stuckToo);
  assertEquals(rest, ["d"]);
  assert(thrown instanceof SuppressedError);
  const { error, suppressed } = thrown;
  for (const [it, path] of [[error, stuck], [suppressed, stuckToo]]) {
    assert(it.message.startsWith(`Cannot remove ${path}: `), it);
    assertEquals(it.constructor, it.cause.constructor);
  }
});

for (const left of ["a/staging", "a/.scratch-UUID", ".scratch-UUID"]) {
  Deno.test(`tempPath() succeeds where ${left} has filled the disk`, {
    ignore: !CAN_MOUNT,
  }, async () => {
    using dir = scene();
    const full = resolve(dir.path, ".cog", left)
      .replace("UUID", crypto.randomUUID());
    const code = `
    await using cog = await open(args[0]);
    Deno.mkdirSync(args[1], { recursive: true });
    Deno.writeTextFileSync(args[1] + ".lock", "");
    const data = new Uint8Array(Number(args[2]));
    try {
      for (let i = 0;; i++) Deno.writeFileSync(args[1] + "/" + i, data);
    } catch (error) {
      console.log(error.code);
    }
    const { remove } = Deno;
    Deno.remove = async (path, options) => {
      await new Promise((resolve) => setTimeout(resolve, 20));
      await remove(path, options);
    };
    const scratch = await cog.tempPath("a/staging");
    console.log([...Deno.readDirSync(scratch)].length);
    if (scratch === args[1]) Deno.writeFileSync(scratch + "/fits", data);`;
    const disks = [["size=1m", "65536"], ["nr_inodes=40", "0"]];
    for (const [disk, size] of disks) {
      const args = [dir.path, full, size];
      const under = onTmpfs(disk, dir.path);
      await using child = script(code, args, undefined, { under });
      assertEquals(await child.line(), "ENOSPC");
      assertEquals(await child.line(), "0");
      assertEquals((await child.ended()).code, 0);
    }
  });
}

Deno.test("tempPath() deletes what overlays do not move", MOUNTS, async () => {
  using dir = scene();
  const under = ["unshare", "-m", "sh", "-c"].concat(
    // On a disk of its own: an overlay cannot be made of parts of another one.
    `mount -t tmpfs none "$0" && cd "$0" &&
 mkdir -p lower/.cog/staging upper work merged &&
 touch lower/.cog/staging/file && mount -t overlay -o \\
   lowerdir=lower,upperdir=upper,workdir=work overlay merged || exit
 exec "$@"`,
    dir.path,
  );
  await using child = script(
    `await using cog = await open(args[0]);
     console.log([...Deno.readDirSync(await cog.tempPath("staging"))].length);
     await cog.close();
     console.log([...Deno.readDirSync(cog.root)].length);`,
    [resolve(dir.path, "merged")],
    undefined,
    { under },
  );
  for (let i = 0; i < 2; i++) assertEquals(await child.line(), "0");
  await child.ended();
});

Deno.test("tempPath() that loses its .cog during a wipe does not create another", async () => {
  await using cog = await openTemp();
  await cog.path("staging/sub");
  const { remove } = Deno;
  using _ = replace(Deno, "remove", async (path, options) => {
    await remove(path, options);
    Deno.removeSync(cog.root, { recursive: true });
  });
  const message = `Cannot create scratch ${resolve(cog.root, "staging")}: `;
  await assertRejects(() => cog.tempPath("staging"), NotFound, message);
  assertEquals(exists(cog.root), false);
});

// Crashes

Deno.test("tempPath() sweeps any file, and nothing it leads to", {
  ignore: !CAN_LINK || !has("mkfifo"),
}, async () => {
  await using cog = await openTemp();
  const kept = await cog.filePath("outside/file");
  Deno.writeTextFileSync(kept, "kept");
  const [tree, file, link, pipe] = Array.from({ length: 4 }, () => {
    const path = reserve(cog.root);
    Deno.writeTextFileSync(`${path}.lock`, "");
    return path;
  });
  Deno.mkdirSync(resolve(tree, "sub"), { recursive: true });
  Deno.writeTextFileSync(file, "");
  Deno.symlinkSync(resolve(kept, ".."), link);
  new Deno.Command("mkfifo", { args: [pipe] }).outputSync();
  assertEquals(reserved(cog.root).length, 8);
  const inner = await open(cog.projectDir);
  await inner.tempPath("staging");
  await inner.close();
  assertEquals(names(cog.root), [".gitignore", "outside"]);
  assertEquals(Deno.readTextFileSync(kept), "kept");
});

/** Takes scratch that no exit can delete. */
const STUCK = `
  Deno.writeTextFileSync(await cog.tempPath() + "/file", "");
  const { removeSync } = Deno;
  Deno.removeSync = (path, options) => {
    if (options?.recursive) throw new Error("somebody still writes");
    removeSync(path);
  };`;

for (
  const [story, code] of [
    ["what an exit cannot delete", STUCK],
    [
      "what an exit in the middle of a close cannot delete",
      `${STUCK} Deno.remove = () => Deno.exit(); cog.close();`,
    ],
    [
      "what strangers left, after an exit during such a sweep",
      `Deno.mkdirSync(args[1]);
       Deno.writeTextFileSync(args[1] + ".lock", "");
       Deno.remove = () => new Promise(() => {});
       await cog.tempPath();
       Deno.exit(0);`,
    ],
  ]
) {
  Deno.test(`tempPath() sweeps ${story}`, async () => {
    await using outer = await openTemp();
    const args = [outer.projectDir, reserve(outer.root)];
    await using child = script(
      `const cog = await open(args[0]); ${code}`,
      args,
    );
    await child.ended();
    assertEquals(reserved(outer.root).length, 2); // with the lock file
    const cog = await open(outer.projectDir);
    await cog.tempPath();
    await cog.close();
    assertEquals(names(outer.root), [".gitignore"]);
  });
}

Deno.test("tempPath() does not wait for the sweep of what others left, nor does the lock, but close does, even if the call failed", async () => {
  await using outer = await openTemp();
  leftover(outer.root);
  const cog = await open(outer.projectDir);
  await cog.lock();
  const { promise: allowed, resolve: allow } = Promise.withResolvers<void>();
  const { remove } = Deno;
  using _ = replace(Deno, "remove", async (path, options) => {
    if (names(`${path}`).includes("sub")) await allowed;
    await remove(path, options);
  });
  await assertRejects(() => cog.tempPath("x".repeat(300)), Error);
  await cog.tempPath();
  let closed = false;
  const closing = cog.close().then(() => closed = true);
  (await soon(outer.lock()))();
  assertEquals([closed, reserved(cog.root).length], [false, 2]);
  allow();
  await closing;
  assertEquals(reserved(cog.root), []);
});

// Where a lock reaches

Deno.test("tempPath() spares a download of another host that locks reach", {
  ignore: BINDFS.ignore,
}, async () => {
  using dir = scene();
  const [disk, one, two] = ["disk", "one", "two"]
    .map((name) => resolve(dir.path, name));
  for (const path of [disk, one, two]) Deno.mkdirSync(path);
  const options = ["--multithreaded", "--enable-lock-forwarding"];
  using _one = bindfs(...options, disk, one);
  using _two = bindfs(...options, disk, two);
  await using owner = script(DOWNLOAD, [one]);
  await owner.line();
  for (let i = 0; i < 3; i++) {
    const cog = await open(two);
    await cog.tempPath();
    await cog.close();
  }
  await owner.go();
  assertEquals(await owner.line(), "1");
  await owner.ended();
  assertEquals(reserved(resolve(two, ".cog")), []);
});

const REFUSALS = ["ENOSYS", "ENOLCK", "EOPNOTSUPP", "EINVAL", "EBADF", "524"];
for (const error of REFUSALS) {
  Deno.test(`tempPath() without locks (${error}) is never swept`, {
    ignore: !HAS_STRACE,
  }, async () => {
    await using outer = await openTemp();
    const left = leftover(outer.root);
    const trace = resolve(outer.projectDir, "trace");
    const under = ["strace", "-f", "-qq", "-o", trace, "-e", "trace=flock"]
      .concat("-e", `inject=flock:error=${error}`);
    await using owner = script(DOWNLOAD, [outer.projectDir], undefined, {
      under,
    });
    await owner.line();
    assertEquals(reserved(outer.root).length, 3);
    assertEquals(exists(left), true);
    const cog = await open(outer.projectDir);
    await cog.tempPath();
    await cog.close();
    assertEquals(reserved(outer.root).length, 1);
    await owner.go();
    assertEquals(await owner.line(), "1");
    await owner.ended();
    assertEquals(names(outer.root), [".gitignore"]);
  });
}

Deno.test("tempPath({ dir }) is on the disk of that directory", {
  ignore: !CAN_LINK,
}, async () => {
  using disk = scene(exists("/dev/shm") ? "/dev/shm" : undefined);
  await using outer = await openTemp();
  Deno.symlinkSync(disk.path, resolve(outer.root, "cache"));
  const cog = await open(outer.projectDir);
  const scratch = await cog.tempPath({ dir: "cache" });
  assertEquals(resolve(scratch, ".."), resolve(cog.root, "cache"));
  const file = resolve(scratch, "new");
  Deno.writeTextFileSync(file, "weights");
  Deno.renameSync(file, await cog.filePath("cache/weights"));
  leftover(disk.path);
  await cog.tempPath({ dir: "cache/./deep/.." });
  for (const dir of ["..", "cog.lock", "/x"]) {
    await assertRejects(() => cog.tempPath({ dir }), TypeError, `"${dir}"`);
  }
  assertEquals(resolve(await cog.tempPath({}), ".."), cog.root);
  await cog.tempPath({ dir: "a/b" });
  assertEquals(reserved(resolve(cog.root, "a", "b")).length, 2);
  await cog.close();
  assertEquals(names(disk.path), ["weights"]);
});

// Others who still write

for (const name of ["", "staging"]) {
  Deno.test(`close() and tempPath(${name}) wait for a child that writes on`, {
    ignore: WINDOWS || !has("bash"),
  }, async () => {
    using dir = scene();
    const code = `
      globalThis.setTimeout = () => 0;
      const cog = await open(args[0]);
      const scratch = await cog.tempPath(args[1] || {});
      const write = 'for i in {1..2000}; do echo > "$0/$i"; done';
      const command = new Deno.Command("bash", {
        args: ["-c", write, scratch],
        stderr: "null",
      });
      const child = command.spawn();
      while ([...Deno.readDirSync(scratch)].length < 20);
      if (args[1]) await cog.tempPath(args[1]);
      await cog.close();
      console.log([...Deno.readDirSync(cog.root)].length);
      await child.status;`;
    await using child = script(code, [dir.path, name]);
    assertEquals(await child.line(), "1");
  });
}

Deno.test("close() waits while a mount is busy", MOUNTS, async () => {
  using dir = scene();
  const code = `
    const cog = await open(args[0]);
    const mount = await cog.tempPath() + "/mount";
    Deno.mkdirSync(mount);
    const run = (command, ...args) => new Deno.Command(command, { args }).output();
    await run("mount", "-t", "tmpfs", "none", mount);
    const { remove } = Deno;
    let tries = 0;
    Deno.remove = async (path, options) => {
      if (++tries === 2) await run("umount", path + "/mount");
      await remove(path, options);
    };
    await cog.close();
    console.log(tries);`;
  const under = ["unshare", "-m"];
  await using child = script(code, [dir.path], undefined, { under });
  assertEquals(await child.line(), "2");
});

// Exits

for (
  const [how, code] of [
    ["at Deno.exit()", "Deno.exit(0);"],
    ["at the end of a script that forgot to close", ""],
    [
      "at Deno.exit() while they are closed",
      "Deno.remove = () => Deno.exit(0); cog.close();",
    ],
    [
      "at Deno.exit() in the middle of a wipe",
      `Deno.remove = () => Deno.exit(0); await cog.tempPath("staging");`,
    ],
    [
      "at Deno.exit() after another handle took the name during the close",
      `const { remove } = Deno;
       let other;
       Deno.remove = async (path, options) => {
         await remove(path, options);
         if (other || [...Deno.readDirSync(cog.root)].length > 3) return;
         other = await open(args[0]);
         await other.tempPath("staging");
       };
       await cog.close();
       Deno.exit(0);`,
    ],
    [
      "at Deno.exit() after the close of a handle that had one of the same name",
      `const other = await open(args[0]);
       await other.tempPath("staging");
       await cog.close();
       Deno.exit(0);`,
    ],
  ]
) {
  Deno.test(`tempPath() and openTemp() directories are removed ${how}`, async () => {
    using dir = scene();
    await using child = script(
      `const cog = await open(args[0]);
       const temp = await openTemp();
       const scratch = await cog.tempPath("staging");
       await cog.tempPath("staging");
       for (const path of [scratch, temp.root]) {
         for (let i = 0; i < 50; i++) Deno.writeTextFileSync(path + "/" + i, "");
       }
       await cog.tempPath();
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

for (const step of ["mkdirSync", "openSync", "renameSync", "readDirSync"]) {
  Deno.test(`tempPath() that an exit comes upon right after ${step}() leaves nothing`, async () => {
    for (const name of ["undefined", '"a/staging"']) {
      using dir = scene();
      await using child = script(
        `const cog = await open(args[0]);
         await cog.path("a");
         const { ${step} } = Deno;
         Deno.${step} = (...args) => {
           queueMicrotask(() => Deno.exit(0));
           return ${step}(...args);
         };
         cog.tempPath(${name});`,
        [dir.path],
      );
      await child.ended();
      const root = resolve(dir.path, ".cog");
      assertEquals(names(root), [".gitignore", "a"]);
      assertEquals(names(resolve(root, "a")), []);
    }
  });
}

Deno.test("tempPath() that stays at exit keeps no other", CHATTR, async () => {
  using dir = scene();
  await using child = script(
    `const cog = await open(args[0]);
     console.log(await cog.tempPath("a"));
     await cog.tempPath("b");
     console.log((await openTemp()).projectDir);
     await heard();`,
    [dir.path],
  );
  const file = resolve(await child.line(), "file");
  const temp = await child.line();
  Deno.writeTextFileSync(file, "");
  chattr("+i", file);
  await child.go();
  await child.ended();
  const left = names(resolve(dir.path, ".cog"));
  chattr("-i", resolve(dir.path, ".cog", left[1], "file"));
  assertEquals(left, [".gitignore", "a"]);
  assertEquals(exists(temp), false);
});

Deno.test("Dir listens to nothing before there is something to remove, nor after close, and minds no later DOM emulation", async () => {
  using dir = scene();
  const code = `
    const told = [];
    const { addEventListener: add, removeEventListener: remove } = globalThis;
    globalThis.addEventListener = (...args) => (told.push("+"), add(...args));
    globalThis.removeEventListener = (...args) => (told.push("-"), remove(...args));
    Deno.addSignalListener = () => told.push("signal");
    const { open } = await import(Deno.args[1]);
    globalThis.addEventListener = globalThis.removeEventListener = () => {};
    const cog = await open(Deno.args[0]);
    await cog.path("a");
    (await cog.lock())();
    told.push("scratch");
    for (const name of ["a", "b"]) await cog.tempPath(name);
    await cog.close();
    console.log(told.join(" "));
    await (await open(Deno.args[0])).tempPath("staging");`;
  const url = `data:text/javascript,${encodeURIComponent(code)}`;
  const args = [
    "run",
    "--quiet",
    "--allow-all",
    ...RESOLUTION,
    url,
    dir.path,
    MOD,
  ];
  await using child = new Peer(Deno.execPath(), args);
  assertEquals(await child.line(), "scratch + -");
  assertEquals((await child.ended()).code, 0);
  assertEquals(exists(resolve(dir.path, ".cog", "staging")), false);
});

Deno.test("tempPath() and openTemp() go on Ctrl-C with the README's lines", {
  ignore: WINDOWS, // which has Ctrl-C, but no process can send it to another
}, async () => {
  using dir = scene();
  await using child = script(
    `const stop = () => Deno.exit(130);
     Deno.addSignalListener("SIGINT", stop);
     await using cog = await open(args[0]);
     await cog.tempPath("staging");
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

// What a close cannot do

const coded = (code: string) =>
  Object.assign(new Error("as it may be"), { code });

for (const code of ["EXDEV", "ENOSYS", "ENOTSUP", "EOPNOTSUPP", "ENOSPC"]) {
  Deno.test(`tempPath() and close() delete in place where nothing moves (${code}), but nothing that came there since`, async () => {
    await using cog = await openTemp();
    Deno.writeTextFileSync(await cog.filePath("staging/file"), "");
    const { renameSync, remove } = Deno;
    using _ = replace(Deno, "renameSync", (from, to) => {
      if (`${from}`.endsWith("staging")) throw coded(code);
      renameSync(from, to);
    });
    const inner = await open(cog.projectDir);
    const scratch = await inner.tempPath("staging");
    assertEquals(names(scratch), []);
    using _remove = replace(Deno, "remove", async (path, options) => {
      await remove(path, options);
      Deno.mkdirSync(resolve(cog.root, "other"));
      Deno.mkdirSync(path);
      throw coded("ENOTEMPTY");
    });
    await inner.close();
    assertEquals(names(cog.root), [".gitignore", "other", "staging"]);
  });
}

Deno.test("close() says where the rest is, and puts back what it cannot look at", async () => {
  await using outer = await openTemp();
  const { lstatSync } = Deno;
  for (const isTaken of [true, false]) {
    const cog = await open(outer.projectDir);
    const path = await cog.tempPath("staging");
    Deno.writeTextFileSync(resolve(path, "mine"), "");
    using _ = isTaken
      ? replace(Deno, "remove", (aside) => {
        Deno.mkdirSync(path);
        return Promise.reject(new PermissionDenied(`remove '${aside}'`));
      })
      : replace(Deno, "lstatSync", (path) => {
        if (/\.scratch-.{36}$/.test(`${path}`)) throw coded("EIO");
        return lstatSync(path);
      });
    const { message } = await assertRejects(() => cog.close(), Error);
    const [left] = reserved(outer.root);
    const rest = isTaken ? resolve(outer.root, left) : path;
    assert(message.startsWith(`Cannot remove ${rest}: `), message);
    assertEquals(names(rest), ["mine"]);
    if (isTaken) Deno.removeSync(path);
  }
});

Deno.test("tempPath() has own tries for each cause, and takes another name for one that exists", async () => {
  await using cog = await openTemp();
  Deno.writeTextFileSync(await cog.filePath("staging/file"), "");
  const { mkdirSync } = Deno;
  let made = 0;
  using _mkdir = replace(Deno, "mkdirSync", (path, options) => {
    if (++made === 2) throw coded("ENOSPC");
    mkdirSync(path, options);
  });
  assertEquals(names(await cog.tempPath("staging")), []);
  const uuids = Array.from({ length: 3 }, () => crypto.randomUUID());
  const asked = [uuids[0], uuids[0], uuids[1]];
  using _uuid = replace(crypto, "randomUUID", () => asked.shift()!);
  const paths = [await cog.tempPath(), await cog.tempPath()];
  assertEquals(paths.map((it) => exists(`${it}.lock`)), [true, true]);
});

Deno.test("tempPath() tries once to delete a leftover, and lists a slow directory seldom", async () => {
  await using outer = await openTemp();
  for (let i = 0; i < 8; i++) leftover(outer.root);
  const { readDirSync } = Deno;
  let [tries, lists, now] = [0, 0, clock.now()];
  using _clock = replace(clock, "now", () => now);
  using _list = replace(Deno, "readDirSync", (path) => {
    lists++;
    now += 10;
    return readDirSync(path);
  });
  const cog = await open(outer.projectDir);
  {
    using _remove = replace(Deno, "remove", () => {
      tries++;
      return Promise.reject(coded("EBUSY"));
    });
    for (let i = 0; i < 50; i++) await cog.tempPath();
    while (tries < 8) await delay(0);
  }
  assertEquals([tries, lists], [8, 1]);
  now += 1000;
  await cog.tempPath();
  await cog.close();
  assertEquals(lists, 2);
  assertEquals(reserved(outer.root), []);
});

Deno.test("close() deletes with as many open files as the scratch had", {
  ignore: !HAS_PROC,
}, async () => {
  using dir = scene();
  await using child = script(
    `const cog = await open(args[0]);
     await Deno.remove(await cog.tempPath()); // starts the threads
     Deno.writeTextFileSync(await cog.tempPath("staging") + "/file", "");
     const files = [];
     try {
       for (;;) files.push(Deno.openSync(args[0]));
     } catch {}
     console.log(await cog.close().catch((error) => error.message));`,
    [dir.path],
    undefined,
    { under: ["sh", "-c", 'ulimit -n 64; exec "$@"', "sh"] },
  );
  assertEquals(await child.line(), "undefined");
});

Deno.test("openTemp() whose .cog cannot be created keeps that error, though the clean-up fails too", async () => {
  const { mkdirSync } = Deno;
  let project = "";
  {
    using _mkdir = replace(Deno, "mkdirSync", (path, options) => {
      if (!`${path}`.endsWith(".cog")) return mkdirSync(path, options);
      project = resolve(`${path}`, "..");
      throw new PermissionDenied("first");
    });
    using _ = replace(
      Deno,
      "remove",
      () => Promise.reject(new Error("second")),
    );
    const error = await assertRejects(() => openTemp(), SuppressedError);
    assert(error.suppressed instanceof PermissionDenied);
    assert(error.error.message.includes(project));
  }
  Deno.removeSync(project);
});

Deno.test("close() of openTemp() leaves what has taken its place", async () => {
  const cog = await openTemp();
  const moved = `${cog.projectDir}.moved`;
  Deno.renameSync(cog.projectDir, moved);
  Deno.mkdirSync(resolve(cog.projectDir, "theirs"), { recursive: true });
  await cog.close();
  assertEquals(names(cog.projectDir), ["theirs"]);
  for (const it of [cog.projectDir, moved]) {
    Deno.removeSync(it, { recursive: true });
  }
});

for (const end of ["await cog.close();", "Deno.exit();"]) {
  Deno.test(
    `openTemp() on a disk that renames open files goes at ${end}`,
    BINDFS,
    async () => {
      using dir = scene();
      const [disk, to] = ["disk", "to"].map((name) => resolve(dir.path, name));
      for (const path of [disk, to]) Deno.mkdirSync(path);
      using _ = bindfs("--multithreaded", "--enable-lock-forwarding", disk, to);
      await using child = script(
        `const cog = await openTemp();
       await cog.lock();
       for (const name of [undefined, "a", "a", "b"]) await cog.tempPath(name);
       ${end}`,
        [],
        undefined,
        { env: { TMPDIR: to } },
      );
      assertEquals((await child.ended()).code, 0);
      assertEquals(names(disk), []);
    },
  );
}
