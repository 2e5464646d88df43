import { assert } from "@std/assert/assert";
import { assertEquals } from "@std/assert/equals";
import { assertRejects } from "@std/assert/rejects";
import { resolve } from "@std/path/resolve";
import { Claim } from "../_dir/claim.ts";
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
  isFree,
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
  until,
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
const MOUNTS = { ignore: !CAN_MOUNT };
const STRACE = { ignore: !HAS_STRACE };
const BASH = { ignore: WINDOWS || !has("bash") };
const PROC = { ignore: !HAS_PROC };
const SETPRIV = { ignore: !HAS_SETPRIV };
const FILES = { ignore: !CAN_LINK || !has("mkfifo") };
const LINKS = { ignore: !CAN_LINK };
const UNIX = { ignore: WINDOWS };

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

/** Mounts one directory at another, to the end of the block. */
function bindfs(...args: string[]): Disposable {
  run("bindfs", ...args);
  return { [Symbol.dispose]: () => run("fusermount", "-u", args.at(-1)!) };
}

const FORWARDING = ["--multithreaded", "--enable-lock-forwarding"];

function directories(parent: string, ...names: string[]): string[] {
  const paths = names.map((name) => resolve(parent, name));
  for (const path of paths) Deno.mkdirSync(path);
  return paths;
}

/** A process that shows at its end whether its scratch is as it was. */
const DOWNLOAD = `
  await using cog = await open(args[0]);
  const scratch = await cog.tempPath();
  Deno.writeTextFileSync(scratch + "/part", "");
  console.log("downloading");
  await heard();
  console.log([...Deno.readDirSync(scratch)].length);`;

Deno.test("tempPath() deletes what has the name, time after time", async () => {
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
    await cog.tempPath({ dir: "x" });
    if (HAS_PROC) assertEquals(openFiles().filter(isInside).length, 2 + 1);
    await cog.close();
    assertEquals(names(resolve(cog.root, "x")), []);
  }
});

Deno.test("Dir obeys the umask", UNIX, async () => {
  using dir = scene();
  const code = `
    Deno.umask(0o002);
    await using cog = await open(args[0]);
    await cog.lock();
    const lockFile = cog.root + "/cog.lock";
    for (const path of [await cog.path("p"), await cog.tempPath("t"), lockFile]) {
      console.log((Deno.statSync(path).mode & 0o777).toString(8));
    }`;
  await using child = script(code, [dir.path]);
  for (const it of ["775", "775", "664"]) assertEquals(await child.line(), it);
});

Deno.test("tempPath() sweeps what kills leave, nothing of a neighbour's, and deletes what has the name", async () => {
  using dir = scene();
  const root = resolve(dir.path, ".cog");
  using _clock = replace(clock, "now", () => 0); // so that no listing is slow
  await using neighbour = script(DOWNLOAD, [dir.path]);
  await neighbour.line();
  Deno.mkdirSync(resolve(root, ".scratch-not-a-uuid"));
  const owned = Array.from({ length: 10 }, (_, i) => `owned${i}`);
  const code = `
    const cog = await open(args[0]);
    for (let i = 0;; i++) {
      for (const name of [undefined, args[1]]) {
        Deno.writeTextFileSync(await cog.tempPath(name) + "/file", "");
      }
      if (i === 10) console.log("at work");
    }`;
  for (let round = 0; round < 3; round++) {
    await using stack = new AsyncDisposableStack();
    const owners = owned.map((name) =>
      stack.use(script(code, [dir.path, name]))
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

Deno.test("tempPath() deletes links, and follows none", LINKS, async () => {
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
  const claim = `.scratch-${crypto.randomUUID()}.lock`;
  Deno.symlinkSync(resolve(outside, "file"), resolve(cog.root, claim));
  const scratch = await cog.tempPath("cache");
  assertEquals(Deno.lstatSync(scratch).isSymlink, false);
  assertEquals(names(scratch), []);
  Deno.symlinkSync(outside, resolve(scratch, "link"));
  await cog.close();
  assertEquals(names(cog.root), [".gitignore", claim, "a"]);
  assertEquals(names(outside), ["file"]);
});

// What is somebody else's

for (const disk of ["a disk", "bindfs"]) {
  const options = disk === "bindfs" ? BINDFS : {};
  Deno.test(`close() leaves another's, on ${disk}`, options, async () => {
    using dir = scene();
    const [from, to] = directories(dir.path, "from", "to");
    using _mount = disk === "bindfs" ? bindfs(from, to) : undefined;
    for (let i = 0; i < 50; i++) {
      const cog = await open(to);
      const scratch = await cog.tempPath(`staging${i}`);
      // The same inode number in the same millisecond, unless something keeps it.
      Deno.removeSync(scratch, { recursive: true });
      Deno.mkdirSync(scratch);
      Deno.writeTextFileSync(resolve(scratch, "theirs"), "");
      const nameless = await cog.tempPath();
      const { lstatSync } = Deno;
      using _stat = replace(Deno, "lstatSync", (path) => {
        const ino = Math.random();
        const change = i % 2 ? { ino } : { birthtime: new Date(ino) };
        return { ...lstatSync(path), ...path === nameless && change };
      });
      const { remove } = Deno;
      let [tries, late] = [0, 0];
      const { now } = clock;
      using _clock = replace(clock, "now", () => now() + late);
      using _remove = replace(Deno, "remove", async (path, options) => {
        late += 400; // a large directory takes its time
        if (++tries === i) throw coded("EBUSY");
        await remove(path, options);
      });
      using _ = replace(Deno, "renameSync", () => {
        throw new Error("it is moved, if only for a moment");
      });
      await cog.close();
      assertEquals([names(scratch), exists(nameless)], [["theirs"], false]);
    }
  });
}

Deno.test("close() leaves what was moved or is gone", LINKS, async () => {
  const outer = await openTemp();
  const cog = await open(outer.projectDir);
  const moved = resolve(outer.root, "moved");
  Deno.renameSync(await cog.tempPath("a"), moved);
  const linked = await cog.tempPath("b");
  Deno.removeSync(linked);
  Deno.symlinkSync(moved, linked);
  Deno.renameSync(await cog.tempPath(), resolve(moved, "too"));
  for (const name of ["c", "d"]) {
    await cog.tempPath(`${name}/scratch`);
    Deno.removeSync(resolve(cog.root, name), { recursive: true });
  }
  Deno.writeTextFileSync(resolve(cog.root, "d"), "a file now");
  await cog.close();
  assertEquals(names(outer.root), [".gitignore", "b", "d", "moved"]);
  assertEquals(names(moved), ["too"]);
  Deno.removeSync(outer.projectDir, { recursive: true });
  await outer.close();
});

Deno.test("close() leaves what is mounted at scratch", MOUNTS, async () => {
  using dir = scene();
  const [project, theirs] = directories(dir.path, "project", "theirs");
  Deno.writeTextFileSync(resolve(theirs, "file"), "");
  const code = `
    await using cog = await open(args[0]);
    const bind = ["--bind", args[1], await cog.tempPath()];
    console.log(new Deno.Command("mount", { args: bind }).outputSync().code);`;
  const under = ["unshare", "-m"];
  await using child = script(code, [project, theirs], undefined, { under });
  assertEquals(await child.line(), "0");
  await child.ended();
  assertEquals(names(theirs), ["file"]);
  assertEquals(reserved(resolve(project, ".cog")).length, 1); // no lock file
});

Deno.test("close() keeps what it cannot put back", async () => {
  const outer = await openTemp();
  const { projectDir, root } = outer;
  const cog = await open(projectDir);
  const path = await cog.tempPath("staging");
  const { renameSync } = Deno;
  using _ = replace(Deno, "renameSync", (_, aside) => {
    renameSync(path, resolve(root, "moved"));
    Deno.mkdirSync(resolve(path, "theirs"), { recursive: true });
    renameSync(path, aside);
    Deno.mkdirSync(path);
  });
  const told = `it is somebody else's, and could not return to ${path}; `;
  await assertRejects(() => cog.close(), AlreadyExists, told);
  const code = "await using cog = await open(args[0]); await cog.tempPath();";
  await using child = script(code, [projectDir]);
  await child.ended();
  assertEquals(names(resolve(root, reserved(root)[0])), ["theirs"]);
  await outer.close();
  Claim.releaseDeleted(); // as the next deletion that is refused does
});

// Failures

Deno.test("tempPath() that fails leaves what exists, and nothing of its own", async () => {
  await using cog = await openTemp();
  const file = resolve(await cog.path("staging"), "file");
  Deno.writeTextFileSync(file, "kept");
  const inside = await cog.tempPath({ dir: "staging" });
  const failures = [
    ["mkdirSync", undefined, Error, 1],
    ["renameSync", "staging", Error, 1],
    ["remove", "staging", Error, 1],
    ["renameSync", "x", AlreadyExists, 20], // as XFS says it
    ["openSync", "x", Error, 1], // as with too many open files
    ["openSync", undefined, Error, 1],
  ] as const;
  for (const [call, name, Class, expected] of failures) {
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
  const isLeft = (path: string) => path.startsWith(`${cog.root}/.`);
  if (HAS_PROC) assertEquals(openFiles().filter(isLeft), []);
  assertEquals(Deno.readTextFileSync(file), "kept");
  assertEquals(isFree(`${inside}.lock`), false);
  assertEquals(names(cog.root).length, 2 + 2); // with the leftover
});

Deno.test("tempPath() that never can fails at once", UNIX, async () => {
  await using cog = await openTemp();
  Deno.writeTextFileSync(await cog.filePath("file"), "");
  let opens = 0;
  const { openSync } = Deno;
  using _ = replace(Deno, "openSync", (path, options) => {
    opens++;
    return openSync(path, options);
  });
  for (const name of ["x".repeat(300), "file/x"]) {
    const told = `Cannot create scratch ${resolve(cog.root, name)}: `;
    await assertRejects(() => cog.tempPath(name), Error, told);
  }
  assertEquals(opens, 3); // a claim and its directory, and a claim that fails
  assertEquals(names(cog.root), [".gitignore", "file"]);
});

Deno.test("Dir puts back what it cannot delete", SETPRIV, async () => {
  using dir = scene();
  const code = `
    const tell = (error) => console.log(error.name, error.code, error.message);
    const cog = await open(args[0]);
    console.log(await cog.tempPath("staging"));
    await heard();
    await cog.close().catch(tell);
    for (let i = 0; i < 3; i++) {
      await using cog = await open(args[0]);
      await cog.tempPath("staging").catch(tell);
    }`;
  await using child = script(code, [dir.path], undefined, { under: POWERLESS });
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

for (const left of ["a/staging", "a/.scratch-UUID", ".scratch-UUID"]) {
  Deno.test(`tempPath() where ${left} fills the disk`, MOUNTS, async () => {
    using dir = scene();
    const full = resolve(dir.path, ".cog", left)
      .replace("UUID", crypto.randomUUID());
    const code = `
    await using cog = await open(args[0]);
    const { readDirSync } = Deno;
    Deno.readDirSync = (path) => {
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 50);
      return readDirSync(path);
    };
    await cog.tempPath({ dir: "a" }); // a slow sweep: only urgent ones follow
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
    for (const [disk, size] of [["size=1m", "65536"], ["nr_inodes=40", "0"]]) {
      const under = onTmpfs(disk, dir.path);
      const args = [dir.path, full, size];
      await using child = script(code, args, undefined, { under });
      for (const it of ["ENOSPC", "0"]) assertEquals(await child.line(), it);
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
  const code = `
    await using cog = await open(args[0]);
    console.log([...Deno.readDirSync(await cog.tempPath("staging"))].length);
    await cog.close();
    console.log([...Deno.readDirSync(cog.root)].length);`;
  const args = [resolve(dir.path, "merged")];
  await using child = script(code, args, undefined, { under });
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

Deno.test("tempPath() sweeps files of all kinds", FILES, async () => {
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
const stuck = (name = "") => `
  Deno.writeTextFileSync(await cog.tempPath(${name}) + "/stuck", "");
  const { removeSync } = Deno;
  Deno.removeSync = (path, options) => {
    const all = options ? [...Deno.readDirSync(path)] : [];
    if (all.some(({ name }) => name === "stuck")) throw new Error(path);
    removeSync(path, options);
  };`;

const LEAVERS = {
  "an exit": stuck(),
  "an exit during a close": `${stuck()}
    Deno.remove = () => Deno.exit();
    cog.close();`,
  "an exit during another sweep": `
    Deno.mkdirSync(args[1]);
    Deno.writeTextFileSync(args[1] + ".lock", "");
    Deno.remove = () => new Promise(() => {});
    await cog.tempPath();
    Deno.exit(0);`,
};

for (const [leaver, leave] of Object.entries(LEAVERS)) {
  Deno.test(`tempPath() sweeps what ${leaver} left`, async () => {
    await using outer = await openTemp();
    const code = `const cog = await open(args[0]); ${leave}`;
    const args = [outer.projectDir, reserve(outer.root)];
    await using child = script(code, args);
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

Deno.test("tempPath() spares what another host owns", BINDFS, async () => {
  using dir = scene();
  const [disk, one, two] = directories(dir.path, "disk", "one", "two");
  using _one = bindfs(...FORWARDING, disk, one);
  using _two = bindfs(...FORWARDING, disk, two);
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
  Deno.test(`no sweep without locks (${error})`, STRACE, async () => {
    await using outer = await openTemp();
    const left = leftover(outer.root);
    const inject = `trace=flock -e inject=flock:error=${error}`;
    const under = `strace -f -qq -o /dev/null -e ${inject}`.split(" ");
    const { projectDir } = outer;
    await using owner = script(DOWNLOAD, [projectDir], undefined, { under });
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

Deno.test("tempPath({ dir }) is on the disk of dir", LINKS, async () => {
  using _clock = replace(clock, "now", () => 0); // so that no sweep is slow
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

for (const name of ["", "staging"]) {
  Deno.test(`tempPath(${name}) and a child that writes on`, BASH, async () => {
    using dir = scene();
    const code = `
      globalThis.setTimeout = () => 0;
      const cog = await open(args[0]);
      const scratch = await cog.tempPath(args[1] || {});
      const write = 'for i in {1..500}; do echo > "$0/$i"; done';
      const options = { args: ["-c", write, scratch], stderr: "null" };
      const child = new Deno.Command("bash", options).spawn();
      while ([...Deno.readDirSync(scratch)].length < 20);
      if (args[1]) await cog.tempPath(args[1]);
      await cog.close();
      console.log([...Deno.readDirSync(cog.root)].length);
      await child.status;`;
    await using child = script(code, [dir.path, name]);
    assertEquals(await child.line(), "1");
  });
}

// Exits

const EXITS = {
  "at Deno.exit()": "Deno.exit(0);",
  "at the end of a script that forgot to close": "",
  "during a close": "Deno.remove = () => Deno.exit(0); cog.close();",
  "during a wipe": `
    Deno.remove = () => Deno.exit(0);
    await cog.tempPath("staging");`,
  "after somebody took the name during a deletion in place": `
    await cog.tempPath("theirs");
    Deno.renameSync = () => {
      throw Object.assign(new Error(), { code: "EXDEV" });
    };
    Deno.remove = (path) => {
      if (Deno.build.os !== "windows") Deno.openSync(path); // keeps its number
      Deno.removeSync(path);
      Deno.mkdirSync(path);
      Deno.exit(0);
    };
    await cog.close();`,
  "after another handle took the name during the close": `
    const { remove } = Deno;
    let other;
    Deno.remove = async (path, options) => {
      await remove(path, options);
      if (other || [...Deno.readDirSync(cog.root)].length > 3) return;
      other = await open(args[0]);
      await other.tempPath("staging");
    };
    await cog.close();
    Deno.exit(0);`,
  "after the close of a handle that had one of the same name": `
    const other = await open(args[0]);
    await other.tempPath("staging");
    await cog.close();
    Deno.exit(0);`,
};

for (const [when, exit] of Object.entries(EXITS)) {
  Deno.test(`an exit ${when} removes its directories`, async () => {
    using dir = scene();
    const code = `
      const cog = await open(args[0]);
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
      ${exit}`;
    await using child = script(code, [dir.path]);
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
      const code = `
        const cog = await open(args[0]);
        await cog.path("a");
        const { ${step} } = Deno;
        Deno.${step} = (...args) => {
          queueMicrotask(() => Deno.exit(0));
          return ${step}(...args);
        };
        cog.tempPath(${name});`;
      await using child = script(code, [dir.path]);
      await child.ended();
      const root = resolve(dir.path, ".cog");
      assertEquals(names(root), [".gitignore", "a"]);
      assertEquals(names(resolve(root, "a")), []);
    }
  });
}

Deno.test("tempPath() that stays at exit keeps no other", async () => {
  using dir = scene();
  const code = `
    console.log((await openTemp()).projectDir);
    const cog = await open(args[0]);
    await cog.tempPath("b");
    ${stuck("'a'")}`;
  await using child = script(code, [dir.path]);
  const temp = await child.line();
  await child.ended();
  assertEquals(names(resolve(dir.path, ".cog")), [".gitignore", "a"]);
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
  const run = ["run", "--quiet", "--allow-all", ...RESOLUTION, url];
  await using child = new Peer(Deno.execPath(), [...run, dir.path, MOD]);
  assertEquals(await child.line(), "scratch + -");
  assertEquals((await child.ended()).code, 0);
  assertEquals(exists(resolve(dir.path, ".cog", "staging")), false);
});

// What a close cannot do

/** To these, Deno gives no code on Linux. */
const UNNAMED: Record<string, number> = { ENOSYS: 38, EDQUOT: 122 };
const coded = (code: string) =>
  Deno.build.os === "linux" && code in UNNAMED
    ? new Error(`as it may be (os error ${UNNAMED[code]})`)
    : Object.assign(new Error("as it may be"), { code });

for (const code of ["EXDEV", "ENOSYS", "ENOTSUP", "EOPNOTSUPP", "EDQUOT"]) {
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
      using _ = WINDOWS ? undefined : Deno.openSync(path); // keeps its number
      await remove(path, options);
      Deno.mkdirSync(resolve(cog.root, "other"), { recursive: true });
      Deno.mkdirSync(path);
      // As with a mount, or when another deletes it at the same time.
      throw code === "EXDEV" ? coded("EBUSY") : new NotFound();
    });
    await inner.close();
    assertEquals(names(cog.root), [".gitignore", "other", "staging"]);
  });
}

Deno.test("close() says where the rest is, and puts back what it cannot look at", async () => {
  await using outer = await openTemp();
  const { lstatSync } = Deno;
  for (const isTaken of [false, true]) {
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
    assert(isFree(resolve(outer.root, reserved(outer.root).at(-1)!)));
    const rest = isTaken ? resolve(outer.root, left) : path;
    assert(message.startsWith(`Cannot remove ${rest}: `), message);
    assertEquals(names(rest), ["mine"]);
    if (isTaken) Deno.removeSync(path);
  }
});

Deno.test("close() that cannot delete scratch ends no claim in it, or in what has its name now", async () => {
  await using outer = await openTemp();
  const { root } = outer;
  const cog = await open(outer.projectDir);
  await cog.tempPath("a");
  const inside = await outer.tempPath({ dir: "a" });
  let later = "";
  {
    using _ = replace(Deno, "remove", async () => {
      later ||= await outer.tempPath({ dir: "a" });
      throw coded("EBUSY");
    });
    await assertRejects(() => cog.close(), Error, "Cannot remove ");
  }
  const [aside] = reserved(root);
  const moved = inside.replace(resolve(root, "a"), resolve(root, aside));
  for (const it of [moved, later]) assertEquals(isFree(`${it}.lock`), false);
});

Deno.test("close() removes scratch whose name another failed to take", async () => {
  await using other = await openTemp();
  const cog = await open(other.projectDir);
  const path = await cog.tempPath("a $& b");
  Deno.writeTextFileSync(resolve(path, "mine"), "");
  const { renameSync } = Deno;
  {
    using _rename = replace(Deno, "renameSync", (from, to) => {
      if (from === path) throw coded("EXDEV");
      renameSync(from, to);
    });
    const error = new NotFound(`remove '${path}'`); // so it seems
    using _remove = replace(Deno, "remove", () => Promise.reject(error));
    const message = `Cannot remove ${path}: remove '${path}'`;
    await assertRejects(() => other.tempPath("a $& b"), NotFound, message);
  }
  await cog.close();
  assertEquals(exists(path), false);
});

Deno.test("tempPath() has own tries for each cause, and takes another name for one that exists", async () => {
  await using cog = await openTemp();
  Deno.writeTextFileSync(await cog.filePath("staging/file"), "");
  const { mkdirSync } = Deno;
  let made = 0;
  using _mkdir = replace(Deno, "mkdirSync", (path, options) => {
    if (++made === 2) throw coded("ENOSPC");
    mkdirSync(path, options);
    if (made === 5) throw coded("EBUSY");
  });
  assertEquals(names(await cog.tempPath("staging")), []);
  const uuids = Array.from({ length: 3 }, () => crypto.randomUUID());
  const asked = [uuids[0], ...uuids];
  using _uuid = replace(crypto, "randomUUID", () => asked.shift()!);
  const paths = [await cog.tempPath(), await cog.tempPath()];
  assertEquals(paths.map((it) => exists(`${it}.lock`)), [true, true]);
});

for (const slow of ["listing", "try"]) {
  Deno.test(`tempPath() tries once to delete a leftover, and sweeps seldom if a ${slow} takes long`, async () => {
    await using outer = await openTemp();
    for (let i = 0; i < 8; i++) leftover(outer.root);
    const { openSync, readDirSync } = Deno;
    let [tries, lists, opens, cost, now] = [0, 0, 0, 0.5, clock.now()];
    using _clock = replace(clock, "now", () => now);
    using _list = replace(Deno, "readDirSync", (path) => {
      lists++;
      if (slow === "listing") now += cost;
      return readDirSync(path);
    });
    using _open = replace(Deno, "openSync", (path, options) => {
      if (!options?.createNew) opens++;
      if (slow === "try" && !options?.createNew) now += cost;
      return openSync(path, options);
    });
    const cog = await open(outer.projectDir);
    {
      using _remove = replace(Deno, "remove", () => {
        tries++;
        return Promise.reject(coded("EBUSY"));
      });
      for (let i = 0; i < 50; i++) await cog.tempPath();
      await until(() => tries === 8);
    }
    const opened = WINDOWS ? 8 : 16;
    now += 100 * (slow === "listing" ? cost : opened * cost) - 1;
    await cog.tempPath();
    assertEquals([tries, lists, opens], [8, 1, opened]);
    now += 2;
    cost = 2 ** -5;
    for (let i = 0; i < 2; i++) await cog.tempPath();
    await cog.close();
    assertEquals([lists, reserved(outer.root)], [3, []]);
    assert(opens <= 3 * opened, "it opens what is its own");
  });
}

Deno.test("close() needs no more open files", PROC, async () => {
  using dir = scene();
  const code = `
    const cog = await open(args[0]);
    await Deno.remove(await cog.tempPath()); // starts the threads
    Deno.writeTextFileSync(await cog.tempPath("staging") + "/file", "");
    const files = [];
    try {
      for (;;) files.push(Deno.openSync(args[0]));
    } catch {}
    console.log(await cog.close().catch((error) => error.message));`;
  await using child = script(code, [dir.path], undefined, {
    under: ["sh", "-c", 'ulimit -n 64; exec "$@"', "sh"],
  });
  assertEquals(await child.line(), "undefined");
});

Deno.test("openTemp() that fails keeps its error, though the clean-up fails too", async () => {
  using dir = scene();
  const path = resolve(dir.path, "temp");
  Deno.mkdirSync(path);
  using _temp = replace(Deno, "makeTempDirSync", () => path);
  using _mkdir = replace(Deno, "mkdirSync", () => {
    throw new PermissionDenied("first");
  });
  const second = () => Promise.reject(new Error("second"));
  using _remove = replace(Deno, "remove", second);
  const thrown = await assertRejects(() => openTemp(), SuppressedError);
  assert(thrown.suppressed instanceof PermissionDenied);
  assert(thrown.error.message.includes(path));
  using _open = replace(Deno, "openSync", () => Deno.mkdirSync(path) as never);
  await assertRejects(() => openTemp(), PermissionDenied, "first");
  assertEquals(exists(path), WINDOWS);
});

Deno.test("close() of openTemp() leaves what has taken its place", async () => {
  for (const isEarly of [true, false]) {
    const cog = await openTemp();
    const { projectDir } = cog;
    const moved = `${projectDir}.moved`;
    const swap = () => {
      Deno.renameSync(projectDir, moved);
      Deno.mkdirSync(resolve(projectDir, "theirs"), { recursive: true });
    };
    using _ = replace(Deno, "remove", () => {
      swap();
      return Promise.reject(coded("EBUSY"));
    });
    if (isEarly) swap();
    await cog.close();
    assertEquals(names(projectDir), ["theirs"]);
    for (const it of [projectDir, moved]) {
      Deno.removeSync(it, { recursive: true });
    }
  }
});

const ENDS = ["await temp.close();", "await cog.close();", "Deno.exit();"]
  .concat("Deno.remove = () => Deno.exit(); cog.close();");
for (const end of ENDS) {
  // This disk renames a file that is deleted while it is open.
  Deno.test(`scratch on bindfs is removed at ${end}`, BINDFS, async () => {
    using dir = scene();
    const [disk, to] = directories(dir.path, "disk", "to");
    using _ = bindfs(...FORWARDING, disk, to);
    const code = `
      const temp = await openTemp();
      const cog = await open(args[0]);
      for (const it of [temp, cog]) {
        await it.lock();
        const beside = await it.tempPath({ dir: "ab" });
        for (const name of ["a/b", "a", "a"]) await it.tempPath(name);
        const file = Deno.openSync(beside + ".lock");
        if (file.tryLockSync(true)) Deno.exit(1);
        file.close();
        const other = await open(it.projectDir);
        for (let i = 0; i < 20; i++) await other.tempPath({ dir: "a/" + i });
      }
      ${end}`;
    await using child = script(code, [to], undefined, { env: { TMPDIR: to } });
    assertEquals((await child.ended()).code, 0);
    assertEquals(names(disk), [".cog"]);
    assertEquals(names(`${disk}/.cog`), [".gitignore", "ab", "cog.lock"]);
  });
}
