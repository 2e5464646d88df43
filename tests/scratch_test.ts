import { assert } from "@std/assert/assert";
import { assertEquals } from "@std/assert/equals";
import { assertRejects } from "@std/assert/rejects";
import { delay } from "@std/async/delay";
import { resolve } from "@std/path/resolve";
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
  MEMORY_DISK,
  names,
  onTmpfs,
  openFiles,
  POWERLESS,
  replace,
  scene,
  script,
  soon,
  WINDOWS,
} from "./support.ts";

const {
  AlreadyExists,
  BadResource,
  NotADirectory,
  NotFound,
  PermissionDenied,
} = Deno.errors;

const BINDFS = { ignore: !IS_ROOT || !has("bindfs") };
const CHATTR = { ignore: !IS_ROOT || !has("chattr") };
const LINKS = { ignore: !CAN_LINK };
const LINUX = { ignore: !HAS_PROC };
const MOUNTS = { ignore: !CAN_MOUNT };
const STRACE = { ignore: !HAS_STRACE };
const UNIX = { ignore: WINDOWS };

/** The reserved names in a directory. */
function reserved(path: string): string[] {
  return names(path).filter((name) => /^\.(scratch|trash)-/.test(name));
}

/** The path of a kind of name that only this library has. */
function reserve(root: string, kind: "scratch" | "trash"): string {
  return resolve(root, `.${kind}-${crypto.randomUUID()}`);
}

/** The path of scratch whose owner was killed. */
function leftover(root: string): string {
  const path = reserve(root, "scratch");
  Deno.mkdirSync(resolve(path, "sub"), { recursive: true });
  Deno.writeTextFileSync(`${path}.lock`, "");
  return path;
}

/** Mounts one directory at another, to the end of the block. */
function bindfs(...args: string[]): Disposable {
  const run = (command: string, ...args: string[]) =>
    assert(new Deno.Command(command, { args }).outputSync().success, command);
  run("bindfs", ...args);
  return { [Symbol.dispose]: () => run("fusermount", "-u", args.at(-1)!) };
}

/** A directory that is not on the disk of the others, if there is one. */
function otherDisk() {
  const path = Deno.makeTempDirSync({ dir: MEMORY_DISK });
  return {
    path,
    [Symbol.dispose]: () => Deno.removeSync(path, { recursive: true }),
  };
}

// With a name

Deno.test("tempPath() deletes what has the name, and close removes it", async () => {
  await using outer = await openTemp();
  for (const old of ["x/staging/deep/file", "x/staging"]) {
    Deno.writeTextFileSync(await outer.filePath(old), "");
    const cog = await open(outer.projectDir);
    const path = await cog.tempPath("x/staging");
    assertEquals(path, resolve(cog.root, "x", "staging"));
    assertEquals(names(path), []);
    Deno.writeTextFileSync(resolve(path, "file"), "");
    await cog.close();
    assertEquals(names(resolve(path, "..")), []);
  }
});

Deno.test("tempPath() of one name many times gives an empty directory each time, and one open file", async () => {
  await using outer = await openTemp();
  const cog = await open(outer.projectDir);
  for (let i = 0; i < 5; i++) {
    const path = await cog.tempPath("staging");
    assertEquals(names(path), []);
    Deno.writeTextFileSync(resolve(path, "file"), "");
  }
  if (HAS_PROC) {
    // A sweep that is under way has the directory above open too.
    const inside = resolve(cog.root, "x").slice(0, -1);
    const open = openFiles().filter((path) => path.startsWith(inside));
    assertEquals(open, [resolve(cog.root, "staging")]);
  }
  await cog.close();
  assertEquals(names(outer.root), [".gitignore"]);
});

Deno.test("path() and tempPath() obey the umask", UNIX, async () => {
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

Deno.test("tempPath() that is under way when its handle closes rejects, and leaves nothing", async () => {
  await using outer = await openTemp();
  const cog = await open(outer.projectDir);
  Deno.writeTextFileSync(await cog.filePath("staging/file"), "");
  const { remove } = Deno;
  using _ = replace(Deno, "remove", async (path, options) => {
    Deno.remove = remove;
    await delay(50); // what is wiped, unlike the scratch, has many files
    await remove(path, options);
  });
  const scratch = cog.tempPath("staging");
  const refused = assertRejects(() => scratch, BadResource);
  await cog.close();
  assertEquals(names(outer.root), [".gitignore"]);
  await refused;
});

Deno.test("tempPath() tells a name too long at once", STRACE, async () => {
  await using cog = await openTemp();
  const trace = resolve(cog.projectDir, "trace");
  const calls = "trace=mkdir,mkdirat,rename,renameat,renameat2,rmdir";
  const under = ["strace", "-f", "-qq", "-o", trace, "-e", calls];
  const { root } = cog;
  await using child = script(
    `await using cog = await open(args[0]);
     await cog.tempPath("x".repeat(300)).catch((error) =>
       console.log(error.code, error.message));`,
    [cog.projectDir],
    undefined,
    { under },
  );
  const line = await child.line();
  const expected = `ENAMETOOLONG Cannot create scratch ${root}/x`;
  assert(line.startsWith(expected), line);
  assert(!line.includes(".trash-"), line);
  await child.ended();
  const made = Deno.readTextFileSync(trace).split("\n")
    .filter((line) => line.includes(root));
  assert(made.length <= 3, made.join("\n"));
});

// Without a name

Deno.test("tempPath() without a name gives a new empty directory in .cog each time, and close removes it", async () => {
  await using outer = await openTemp();
  const cog = await open(outer.projectDir);
  const paths = new Set<string>();
  for (let i = 0; i < 20; i++) {
    const path = await cog.tempPath();
    assertEquals(resolve(path, ".."), cog.root);
    assertEquals(names(path), []);
    Deno.writeTextFileSync(resolve(path, "file"), "");
    paths.add(path);
  }
  assertEquals(paths.size, 20);
  await cog.close();
  assertEquals(names(outer.root), [".gitignore"]);
});

Deno.test("tempPath() without a name is on the disk of the caches: a file is renamed into place", async () => {
  await using cog = await openTemp();
  const file = resolve(await cog.tempPath(), "manifest.json");
  Deno.writeTextFileSync(file, "[]");
  const manifest = await cog.filePath("cache/manifest.json");
  Deno.renameSync(file, manifest);
  assertEquals(Deno.readTextFileSync(manifest), "[]");
});

/** A process that takes scratch and never sees a file that is not its own. */
const OWNER = `
  const name = args[1] === "" ? undefined : args[1] + Deno.pid;
  await using cog = await open(args[0]);
  const scratch = [];
  for (let i = 0; i < Number(args[2]); i++) {
    const path = await cog.tempPath(name && name + i);
    if ([...Deno.readDirSync(path)].length) throw new Error("not empty");
    Deno.writeTextFileSync(path + "/" + Deno.pid, "");
    scratch.push(path);
    if (i === 20) console.log("at work");
    for (const path of scratch) {
      const [file, ...rest] = [...Deno.readDirSync(path)];
      if (rest.length || file?.name !== String(Deno.pid)) {
        console.log("not its own: " + path);
        Deno.exit(1);
      }
    }
  }
  console.log("done");`;

Deno.test("tempPath() a hundred times in each of ten processes: none sees another's, none is swept", async () => {
  using dir = scene();
  await using stack = new AsyncDisposableStack();
  const owners = Array.from(
    { length: 10 },
    (_, i) => stack.use(script(OWNER, [dir.path, i % 2 ? "own" : "", "100"])),
  );
  for (const owner of owners) {
    assertEquals(await owner.line(), "at work");
    assertEquals(await owner.line(), "done");
  }
  for (const owner of owners) await owner.ended();
  assertEquals(names(resolve(dir.path, ".cog")), [".gitignore"]);
});

Deno.test("tempPath() sweeps what kills leave, nothing of a neighbour's", async () => {
  using dir = scene();
  const root = resolve(dir.path, ".cog");
  await using neighbour = script(
    `await using cog = await open(args[0]);
     const scratch = [await cog.tempPath(), await cog.tempPath("neighbour")];
     for (const path of scratch) Deno.writeTextFileSync(path + "/file", "");
     console.log("staged");
     await heard();
     console.log(scratch.flatMap((path) => [...Deno.readDirSync(path)]).length);`,
    [dir.path],
  );
  await neighbour.line();
  for (let round = 0; round < 10; round++) {
    await using stack = new AsyncDisposableStack();
    const owners = Array.from(
      { length: 10 },
      () => stack.use(script(OWNER, [dir.path, "", "100000"])),
    );
    for (const owner of owners) await owner.line();
    for (const owner of owners) owner.kill();
    for (const owner of owners) await owner.ended();
    assert(reserved(root).length > 100, "nothing was left to sweep");
    await using cog = await open(dir.path);
    await cog.tempPath("other");
    await cog.close();
    assertEquals(reserved(root).length, 2); // the neighbour's
  }
  await neighbour.go();
  assertEquals(await neighbour.line(), "2");
  await neighbour.ended();
  assertEquals(names(root), [".gitignore"]);
});

// Symbolic links

Deno.test("tempPath() refuses a way through a link", LINKS, async () => {
  using dir = scene();
  await using cog = await open(resolve(dir.path, "project"));
  const outside = resolve(dir.path, "outside");
  Deno.mkdirSync(resolve(outside, "staging"), { recursive: true });
  Deno.writeTextFileSync(resolve(outside, "staging", "file"), "kept");
  Deno.symlinkSync(outside, resolve(cog.root, "cache"));
  Deno.mkdirSync(resolve(cog.root, "a"));
  Deno.symlinkSync("..", resolve(cog.root, "a", "up"));
  const message = "symbolic link";
  for (const name of ["cache/staging", "cache/new/x", "a/up/cog.lock"]) {
    await assertRejects(() => cog.tempPath(name), NotADirectory, message);
  }
  assertEquals(names(outside), ["staging"]);
  assertEquals(names(resolve(outside, "staging")), ["file"]);
});

Deno.test("tempPath() deletes a link, not its target", LINKS, async () => {
  using dir = scene();
  const cog = await open(resolve(dir.path, "project"));
  const outside = resolve(dir.path, "outside");
  Deno.mkdirSync(outside);
  Deno.writeTextFileSync(resolve(outside, "file"), "kept");
  Deno.symlinkSync(outside, resolve(cog.root, "staging"));
  const scratch = await cog.tempPath("staging");
  assertEquals(Deno.lstatSync(scratch).isSymlink, false);
  assertEquals(names(scratch), []);
  Deno.symlinkSync(outside, resolve(scratch, "link"));
  await cog.close();
  assertEquals(names(cog.root), [".gitignore"]);
  assertEquals(names(outside), ["file"]);
});

// What is somebody else's

Deno.test("close() leaves a scratch that another created again at once, with its files", async () => {
  await using outer = await openTemp();
  for (let i = 0; i < 200; i++) {
    const cog = await open(outer.projectDir);
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

Deno.test("close() leaves a scratch that another handle took since, which removes it when it closes", async () => {
  await using outer = await openTemp();
  const a = await open(outer.projectDir);
  const b = await open(outer.projectDir);
  await a.tempPath("staging");
  const scratch = await b.tempPath("staging");
  Deno.writeTextFileSync(resolve(scratch, "theirs"), "");
  await a.close();
  assertEquals(names(scratch), ["theirs"]);
  await b.close();
  assertEquals(names(outer.root), [".gitignore"]);
});

Deno.test("close() leaves what was moved or became a link", LINKS, async () => {
  await using outer = await openTemp();
  const cog = await open(outer.projectDir);
  const moved = resolve(outer.root, "moved");
  Deno.renameSync(await cog.tempPath("a"), moved);
  const linked = await cog.tempPath("b");
  Deno.removeSync(linked);
  Deno.symlinkSync(moved, linked);
  const nameless = await cog.tempPath();
  Deno.renameSync(nameless, resolve(moved, "too"));
  Deno.mkdirSync(resolve(nameless, "theirs"), { recursive: true });
  await cog.close();
  const base = nameless.slice(outer.root.length + 1);
  assertEquals(names(outer.root), [".gitignore", base, "b", "moved"]);
  assertEquals(names(moved), ["too"]);
  assertEquals(names(nameless), ["theirs"]);
});

Deno.test(
  "close() leaves what another created anew, on bindfs",
  BINDFS,
  async () => {
    using dir = scene();
    const [from, to] = ["from", "to"].map((name) => resolve(dir.path, name));
    for (const path of [from, to]) Deno.mkdirSync(path);
    using _mount = bindfs(from, to);
    for (let i = 0; i < 20; i++) {
      const cog = await open(to);
      const scratch = await cog.tempPath("staging");
      Deno.removeSync(scratch);
      Deno.mkdirSync(scratch);
      Deno.writeTextFileSync(resolve(scratch, "theirs"), "");
      await cog.close();
      assertEquals(names(scratch), ["theirs"]);
    }
  },
);

for (
  const [kind, take] of Object.entries({
    "a file": (path: string) => Deno.writeTextFileSync(path, ""),
    "a directory": (path: string) =>
      Deno.mkdirSync(resolve(path, "sub"), {
        recursive: true,
      }),
    "a directory on XFS": () => {
      throw new AlreadyExists("as XFS says it");
    },
  })
) {
  Deno.test(`tempPath() starts again where ${kind} takes the name at that moment`, async () => {
    await using cog = await openTemp();
    const staging = resolve(cog.root, "staging");
    const { renameSync } = Deno;
    using _ = replace(Deno, "renameSync", (from, to) => {
      if (to === staging) {
        Deno.renameSync = renameSync;
        take(staging);
      }
      renameSync(from, to);
    });
    assertEquals(names(await cog.tempPath("staging")), []);
    assertEquals(names(cog.root), [".gitignore", "staging"]);
  });
}

Deno.test("close() takes what is gone already for removed", async () => {
  const outer = await openTemp();
  const cog = await open(outer.projectDir);
  Deno.removeSync(await cog.tempPath("staging"));
  for (const name of ["a", "b"]) {
    await cog.tempPath(`${name}/scratch`);
    Deno.removeSync(resolve(cog.root, name), { recursive: true });
  }
  Deno.writeTextFileSync(resolve(cog.root, "b"), "a file now");
  await cog.close();
  Deno.removeSync(outer.projectDir, { recursive: true });
  await outer.close();
});

// Failures

Deno.test("tempPath() that cannot move what has the name leaves it, and nothing of its own", async () => {
  await using cog = await openTemp();
  const path = await cog.path("staging");
  const file = resolve(path, "file");
  Deno.writeTextFileSync(file, "kept");
  {
    using _ = replace(Deno, "renameSync", () => {
      throw new PermissionDenied("as on a disk of somebody else");
    });
    await assertRejects(() => cog.tempPath("staging"), PermissionDenied, path);
  }
  assertEquals(Deno.readTextFileSync(file), "kept");
  assertEquals(names(cog.root), [".gitignore", "staging"]);
});

for (
  const [kind, name] of [["below a file", "file/x"], [
    "on a disk that is read-only",
    "x",
  ]]
) {
  Deno.test(`tempPath() ${kind} is refused at once`, UNIX, async () => {
    await using cog = await openTemp();
    Deno.writeTextFileSync(await cog.filePath("file"), "");
    let tries = 0;
    const { mkdirSync } = Deno;
    using _ = replace(Deno, "mkdirSync", (path, options) => {
      tries++;
      if (name === "x") throw new Error("Read-only file system");
      mkdirSync(path, options);
    });
    await assertRejects(() => cog.tempPath(name), Error, cog.root);
    assertEquals(tries, 1);
  });
}

Deno.test("tempPath() deletes what a full disk does not move", async () => {
  await using cog = await openTemp();
  Deno.writeTextFileSync(await cog.filePath("staging/file"), "");
  const { renameSync } = Deno;
  using _ = replace(Deno, "renameSync", (from, to) => {
    Deno.renameSync = renameSync;
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
  {
    using _ = replace(Deno, "remove", () => {
      Deno.mkdirSync(path);
      return Promise.reject(new PermissionDenied("as of somebody else's file"));
    });
    await assertRejects(() => cog.tempPath("staging"), PermissionDenied, path);
  }
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
    assert(!line.includes(".trash-"), line);
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
});

for (
  const [kind, options, size] of [
    ["bytes", "size=1m", "65536"],
    ["inodes", "nr_inodes=40", "0"],
  ]
) {
  for (const left of ["a/staging", "a/.trash-UUID", ".scratch-UUID"]) {
    Deno.test(
      `tempPath() succeeds where ${left} has used up all ${kind}`,
      MOUNTS,
      async () => {
        using dir = scene();
        await using child = script(
          `await using cog = await open(args[0]);
           const left = args[1].replace("UUID", crypto.randomUUID());
           const full = cog.root + "/" + left;
           Deno.mkdirSync(full, { recursive: true });
           Deno.writeTextFileSync(full + ".lock", "");
           try {
             for (let i = 0; ; i++) {
               Deno.writeFileSync(full + "/" + i, new Uint8Array(Number(args[2])));
             }
           } catch (error) {
             console.log(error.code);
           }
           const scratch = await cog.tempPath("a/staging");
           console.log([...Deno.readDirSync(scratch)].length);
           if (left === "a/staging") Deno.writeTextFileSync(scratch + "/file", "fits");`,
          [dir.path, left, size],
          undefined,
          { under: onTmpfs(options, dir.path) },
        );
        assertEquals(await child.line(), "ENOSPC");
        assertEquals(await child.line(), "0");
        assertEquals((await child.ended()).code, 0);
      },
    );
  }
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
  {
    using _ = replace(Deno, "remove", async (path, options) => {
      await remove(path, options);
      Deno.removeSync(cog.root, { recursive: true });
    });
    const message = `Cannot create scratch ${resolve(cog.root, "staging")}: `;
    await assertRejects(() => cog.tempPath("staging"), NotFound, message);
  }
  assertEquals(exists(cog.root), false);
  await cog.tempPath("staging");
  assertEquals(names(cog.root), [".gitignore", "staging"]);
});

Deno.test("tempPath() that fails loses no open file", LINUX, async () => {
  await using cog = await openTemp();
  const message = `Cannot create scratch ${resolve(cog.root, "staging")}: `;
  const { renameSync } = Deno;
  {
    using _ = replace(Deno, "renameSync", (from, to) => {
      if (`${from}`.includes(".trash-")) {
        throw new AlreadyExists("as in a race that others win");
      }
      renameSync(from, to);
    });
    await assertRejects(() => cog.tempPath("staging"), AlreadyExists, message);
  }
  assertEquals(openFiles().filter((path) => path.startsWith(cog.root)), []);
  assertEquals(names(cog.root), [".gitignore"]);
});

// Crashes

Deno.test("tempPath() sweeps what is left of a kill anywhere in its work", async () => {
  using dir = scene();
  for (let i = 0; i < 10; i++) {
    await using child = script(
      `const cog = await open(args[0]);
       console.log("started");
       for (;;) await cog.tempPath("staging");`,
      [dir.path],
    );
    await child.line();
    child.kill();
    await child.ended();
  }
  const root = resolve(dir.path, ".cog");
  Deno.mkdirSync(resolve(root, ".scratch-not-a-uuid"));
  await using cog = await open(dir.path);
  await cog.tempPath("staging");
  await cog.close();
  assertEquals(names(root), [".gitignore", ".scratch-not-a-uuid"]);
});

for (const kind of ["a tree", "a file", "a link", "a pipe"]) {
  Deno.test(
    `tempPath() sweeps ${kind} that nobody needs any more, and nothing it leads to`,
    {
      ignore: kind === "a link" && !CAN_LINK ||
        kind === "a pipe" && !has("mkfifo"),
    },
    async () => {
      await using cog = await openTemp();
      const kept = await cog.filePath("outside/file");
      Deno.writeTextFileSync(kept, "kept");
      const trash = reserve(cog.root, "trash");
      if (kind === "a tree") {
        Deno.mkdirSync(resolve(trash, "sub"), { recursive: true });
      }
      if (kind === "a file") Deno.writeTextFileSync(trash, "");
      if (kind === "a link") Deno.symlinkSync(resolve(kept, ".."), trash);
      if (kind === "a pipe") {
        new Deno.Command("mkfifo", { args: [trash] }).outputSync();
      }
      const inner = await open(cog.projectDir);
      await inner.tempPath("staging");
      await inner.close();
      assertEquals(names(cog.root), [".gitignore", "outside"]);
      assertEquals(Deno.readTextFileSync(kept), "kept");
    },
  );
}

Deno.test("tempPath() does not sweep what rmdir may not delete, since it may be about to get a name", async () => {
  await using cog = await openTemp();
  const trash = reserve(cog.root, "trash");
  Deno.mkdirSync(resolve(trash, "sub"), { recursive: true });
  {
    using _ = replace(Deno, "removeSync", () => {
      throw new PermissionDenied("as in a sticky directory");
    });
    const inner = await open(cog.projectDir);
    await inner.tempPath("staging");
    await inner.close();
  }
  assertEquals(names(trash), ["sub"]);
});

Deno.test("tempPath() sweeps what an exit cannot delete", async () => {
  await using outer = await openTemp();
  const code = `
    const cog = await open(args[0]);
    const scratch = await cog.tempPath();
    Deno.writeTextFileSync(scratch + "/file", "");
    const { removeSync } = Deno;
    Deno.removeSync = (path, options) => {
      if (options?.recursive) throw new Error("somebody still writes");
      removeSync(path);
    };`;
  await using child = script(code, [outer.projectDir]);
  await child.ended();
  assertEquals(reserved(outer.root).length, 2); // with the lock file
  const cog = await open(outer.projectDir);
  await cog.tempPath();
  await cog.close();
  assertEquals(names(outer.root), [".gitignore"]);
});

Deno.test("tempPath() that an exit comes upon leaves it to others to sweep what strangers left", async () => {
  await using outer = await openTemp();
  const left = leftover(outer.root);
  const code = `
    Deno.remove = () => new Promise(() => {});
    const cog = await open(args[0]);
    await cog.tempPath();
    Deno.exit(0);`;
  await using child = script(code, [outer.projectDir]);
  await child.ended();
  assertEquals(exists(left), true);
  assertEquals(reserved(outer.root).length, 2);
});

Deno.test("tempPath() does not wait for the sweep of what others left, nor does the lock, but close does", async () => {
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
  await cog.tempPath();
  let closed = false;
  const closing = cog.close().then(() => closed = true);
  (await soon(outer.lock()))();
  assertEquals([closed, reserved(cog.root).length], [false, 2]);
  allow();
  await closing;
  assertEquals(reserved(cog.root), []);
});

Deno.test("close() waits for the sweep of a tempPath() that failed", async () => {
  await using outer = await openTemp();
  leftover(outer.root);
  const cog = await open(outer.projectDir);
  const { remove } = Deno;
  using _ = replace(Deno, "remove", async (path, options) => {
    await delay(10);
    await remove(path, options);
  });
  await assertRejects(() => cog.tempPath("x".repeat(300)), Error);
  await cog.close();
  assertEquals(reserved(cog.root), []);
});

Deno.test("tempPath() keeps old scratch where it has too many files open", async () => {
  await using outer = await openTemp();
  const left = leftover(outer.root);
  {
    using _ = replace(Deno, "openSync", () => {
      throw new Error("as at that moment");
    });
    await using cog = await open(outer.projectDir);
    await assertRejects(() => cog.tempPath(), Error, "as at that moment");
  }
  assertEquals(exists(left), true);
  await using cog = await open(outer.projectDir);
  await cog.tempPath();
  await cog.close();
  assertEquals(names(outer.root), [".gitignore"]);
});

// Where a lock reaches

Deno.test(
  "tempPath() on one host keeps what is downloaded on another, where locks on files reach",
  BINDFS,
  async () => {
    using dir = scene();
    const at = (name: string) => resolve(dir.path, name);
    for (const name of ["disk", "one", "two"]) Deno.mkdirSync(at(name));
    const options = ["--multithreaded", "--enable-lock-forwarding"];
    using _one = bindfs(...options, at("disk"), at("one"));
    using _two = bindfs(...options, at("disk"), at("two"));
    {
      await using owner = script(
        `await using cog = await open(args[0]);
       const scratch = await cog.tempPath();
       Deno.writeTextFileSync(scratch + "/part", "");
       console.log("downloading");
       await heard();
       console.log([...Deno.readDirSync(scratch)].length);`,
        [at("one")],
      );
      await owner.line();
      for (let i = 0; i < 3; i++) {
        await using cog = await open(at("two"));
        await cog.tempPath();
      }
      await owner.go();
      assertEquals(await owner.line(), "1");
    }
    await using cog = await open(at("two"));
    await cog.tempPath();
    await cog.close();
    assertEquals(names(cog.root), [".gitignore"]);
  },
);

for (
  const error of ["ENOSYS", "ENOLCK", "EOPNOTSUPP", "EINVAL", "EBADF", "524"]
) {
  Deno.test(
    `tempPath() without locks, by ${error}, is never swept, and close removes it`,
    STRACE,
    async () => {
      await using outer = await openTemp();
      const left = leftover(outer.root);
      const under = [
        "strace",
        "-f",
        "-qq",
        "-o",
        resolve(outer.projectDir, "trace"),
      ]
        .concat("-e", "trace=flock", "-e", `inject=flock:error=${error}`);
      await using owner = script(
        `await using cog = await open(args[0]);
       const scratch = await cog.tempPath();
       Deno.writeTextFileSync(scratch + "/file", "");
       console.log("staged");
       await heard();
       console.log([...Deno.readDirSync(scratch)].length);`,
        [outer.projectDir],
        undefined,
        { under },
      );
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
    },
  );
}

Deno.test(
  "tempPath({ dir }) is on the disk of that directory: a file is renamed into place",
  LINKS,
  async () => {
    using disk = otherDisk();
    await using cog = await openTemp();
    Deno.symlinkSync(disk.path, resolve(cog.root, "cache"));
    const inner = await open(cog.projectDir);
    const scratch = await inner.tempPath({ dir: "cache" });
    assertEquals(resolve(scratch, ".."), resolve(cog.root, "cache"));
    Deno.writeTextFileSync(resolve(scratch, "new"), "weights");
    Deno.renameSync(
      resolve(scratch, "new"),
      await inner.filePath("cache/weights"),
    );
    assertEquals(exists(leftover(disk.path)), true);
    await inner.tempPath({ dir: "cache/./deep/.." });
    await inner.close();
    assertEquals(names(disk.path), ["weights"]);
    for (const dir of ["..", "cog.lock", "/x"]) {
      await assertRejects(() => cog.tempPath({ dir }), TypeError, `"${dir}"`);
    }
    assertEquals(
      await cog.tempPath({}).then((it) => resolve(it, "..")),
      cog.root,
    );
    await cog.tempPath({ dir: "a/b" });
    assertEquals(reserved(resolve(cog.root, "a", "b")).length, 2);
  },
);

// Others who still write

for (const name of [undefined, "staging"]) {
  Deno.test(
    `close() and tempPath(${
      name ?? ""
    }) wait for a child that writes on for a moment, whatever the timers`,
    {
      ignore: WINDOWS || !has("bash"),
    },
    async () => {
      using dir = scene();
      const code = `
      globalThis.setTimeout = () => 0;
      const writer = (path) => {
        const write = 'for i in {1..2000}; do echo > "$0/$i"; done';
        const command = new Deno.Command("bash", { args: ["-c", write, path] });
        return command.spawn();
      };
      const cog = await open(args[0]);
      const name = args[1] || undefined;
      const scratch = await cog.tempPath(name);
      const child = writer(scratch);
      while ([...Deno.readDirSync(scratch)].length < 20);
      if (name) await cog.tempPath(name);
      await cog.close();
      console.log([...Deno.readDirSync(cog.root)].length);
      child.kill();
      await child.status;`;
      const stderr = "null" as const;
      await using child = script(code, [dir.path, name ?? ""], undefined, {
        stderr,
      });
      assertEquals(await child.line(), "1");
    },
  );
}

Deno.test(
  "close() waits for a moment where a mount is still busy",
  MOUNTS,
  async () => {
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
  },
);

// Exits

for (
  const [how, code] of [
    ["at Deno.exit()", "Deno.exit(0);"],
    ["at the end of a script that forgot to close", ""],
    [
      "at Deno.exit() while they are closed",
      "Deno.remove = () => Deno.exit(0); cog.close(); temp.close();",
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

Deno.test("tempPath() that an exit comes upon in the middle of a wipe leaves nothing", async () => {
  using dir = scene();
  const root = resolve(dir.path, ".cog");
  const staging = resolve(root, "staging");
  Deno.mkdirSync(staging, { recursive: true });
  for (let i = 0; i < 4000; i++) {
    Deno.writeTextFileSync(resolve(staging, `${i}`), "");
  }
  await using child = script(
    `const cog = await open(args[0]);
     cog.tempPath("staging");
     Deno.exit(0);`,
    [dir.path],
  );
  await child.ended();
  assertEquals(names(root), []);
});

for (const step of ["mkdirSync", "openSync", "renameSync", "readDir"]) {
  Deno.test(`tempPath() that an exit comes upon right after ${step}() leaves nothing`, async () => {
    using dir = scene();
    for (const name of ["undefined", '"a/staging"']) {
      await using child = script(
        `const cog = await open(args[0]);
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
      assertEquals(names(root).filter((it) => it !== "a"), [".gitignore"]);
      if (exists(resolve(root, "a"))) {
        assertEquals(names(resolve(root, "a")), []);
      }
    }
  });
}

Deno.test("close() that an exit comes upon leaves nothing", async () => {
  using dir = scene();
  const cog = await open(dir.path);
  Deno.mkdirSync(resolve(await cog.tempPath("staging"), "sub"));
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

Deno.test("tempPath() that stays at exit keeps no other", CHATTR, async () => {
  using dir = scene();
  await using child = script(
    `const cog = await open(args[0]);
     const stuck = await cog.tempPath("a");
     await cog.tempPath("b");
     Deno.writeTextFileSync(stuck + "/file", "");
     new Deno.Command("chattr", { args: ["+i", stuck + "/file"] }).outputSync();
     console.log((await openTemp()).projectDir);`,
    [dir.path],
  );
  const temp = await child.line();
  await child.ended();
  const root = resolve(dir.path, ".cog");
  const left = names(root);
  const args = ["-i", resolve(root, left[1], "file")];
  new Deno.Command("chattr", { args }).outputSync();
  assertEquals(left, [".gitignore", "a"]);
  assertEquals(exists(temp), false);
});

Deno.test("Dir registers nothing before there is something to remove, nor after close", async () => {
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
