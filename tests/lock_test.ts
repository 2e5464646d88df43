import { assert } from "@std/assert/assert";
import { assertEquals } from "@std/assert/equals";
import { assertRejects } from "@std/assert/rejects";
import { delay } from "@std/async/delay";
import { resolve } from "@std/path/resolve";
import { clock } from "../_lock/clock.ts";
import { system } from "../_lock/place.ts";
import { lock, type LockOptions, tryLock } from "../lock.ts";
import {
  blocked,
  CAN_LINK,
  CAN_MOUNT,
  countWaits,
  exists,
  has,
  HAS_PROC,
  HAS_SETPRIV,
  HAS_STRACE,
  IS_ROOT,
  isFree,
  onTmpfs,
  openFiles,
  type Peer,
  POWERLESS,
  replace,
  replaceOfFiles,
  scene,
  script,
  soon,
  threads,
  until,
  WINDOWS,
} from "./support.ts";

const { PermissionDenied } = Deno.errors;
const LINUX = { ignore: !HAS_PROC };
const FLOCK = { ignore: !HAS_PROC || !has("flock") };
const LINKS = { ignore: !CAN_LINK };
const READ = { permissions: ["--allow-read=."] };
const UNIX = { ignore: WINDOWS };

/** Locks a file as a program that does not use the library. */
function theirs(path: string): Deno.FsFile {
  const file = Deno.openSync(path, { write: true, create: true });
  assertEquals(file.tryLockSync(true), true);
  return file;
}

/** A wait that is under way. */
async function waiting(path: string, options: LockOptions = {}) {
  let calls = 0;
  const waiter = lock(path, { ...options, onWait: () => calls++ });
  waiter.catch(() => {}); // it is for the test to await
  await until(() => calls > 0);
  if (!options.signal && HAS_PROC) await until(() => blocked(Deno.pid) > 0);
  return { lock: waiter };
}

/** A signal that nobody aborts. */
const endless = () => new AbortController().signal;

/** Throws where the test wants it. */
const throwing = () => {
  throw new RangeError("as the test wants");
};

/** What this process has open, where the system tells. */
const opened = () => HAS_PROC ? openFiles() : [];

/** The latest time that any test has seen, since no clock goes back. */
let latest = 0;

/** A clock that only the pauses of this process move on, and what they are. */
function fakeTime(onPause = () => {}) {
  const stack = new DisposableStack();
  const pauses: number[] = [];
  const now = Math.ceil(Math.max(latest, clock.now())) + 10_000;
  const hold = async (path: string, ms: number) => {
    const release = (await tryLock(path))!; // which gives no way
    time.now += ms;
    release();
  };
  const time = { now, pauses, hold, [Symbol.dispose]: () => stack.dispose() };
  stack.defer(() => latest = time.now);
  stack.use(replace(clock, "now", () => time.now += 0.001)); // it never stands
  stack.use(replace(clock, "setTimeout", (end, ms) => {
    pauses.push(Math.trunc(ms)); // as the real one does
    time.now += pauses.at(-1)!;
    onPause();
    return setTimeout(end);
  }));
  return time;
}

/** Ends no pause, so that only events wake a waiter, to the end of the block. */
const endlessPauses = () =>
  replace(clock, "setTimeout", (end) => setTimeout(end, 600_000));

/** Makes Deno find something else about the file at each path. */
function fakeStat(fake: (real: Deno.FileInfo) => Partial<Deno.FileInfo>) {
  const { statSync } = Deno;
  return replace(Deno, "statSync", (path) => {
    const real = statSync(path);
    return { ...real, ...fake(real) };
  });
}

// onWait

Deno.test("lock() calls onWait once, after it has returned its promise, if it must wait", async () => {
  using dir = scene();
  const calls: string[] = [];
  (await lock(dir.file, { onWait: () => calls.push("behind nobody") }))();
  using holder = theirs(dir.file);
  const waiters = ["behind another program", "behind this one"].map((it) =>
    lock(dir.file, { onWait: () => calls.push(it) })
  );
  assertEquals(calls, []);
  await until(() => calls.length > 0);
  assertEquals(calls, ["behind another program", "behind this one"]);
  holder.close();
  for (const waiter of waiters) (await soon(waiter))();
  assertEquals(calls.length, 2);
});

Deno.test("lock() whose onWait releases the lock and throws rejects, and leaves it free", async () => {
  using dir = scene();
  const release = await lock(dir.file);
  const onWait = () => {
    release(); // which grants the lock to this very call
    throwing();
  };
  await assertRejects(() => lock(dir.file, { onWait }), RangeError);
  (await tryLock(dir.file))!();
});

Deno.test("lock() rejects with what onWait throws, unless the signal is aborted first, and leaves no wait", async () => {
  using dir = scene();
  using _holder = theirs(dir.file);
  using waits = countWaits();
  const controller = new AbortController();
  const { signal } = controller;
  const polling = await waiting(dir.file, { signal });
  const refused = () => lock(dir.file, { onWait: throwing });
  await assertRejects(refused, RangeError, "as the test");
  const onWait = () => {
    controller.abort("enough");
    throwing();
  };
  for (const waiter of [lock(dir.file, { signal, onWait }), polling.lock]) {
    assertEquals(await waiter.catch((reason) => reason), "enough");
  }
  await delay(0);
  assertEquals(waits.count, 0);
});

// The signal

Deno.test("lock() with an aborted signal rejects with its reason, and touches nothing", async () => {
  using dir = scene();
  const reason = { any: "value" };
  const aborted = lock(dir.file, { signal: AbortSignal.abort(reason) });
  assert(await aborted.catch((error) => error) === reason);
  assertEquals(exists(dir.file), false);
});

Deno.test("lock() takes a signal of a class of one's own", async () => {
  using dir = scene();
  const signal = Object.assign(new EventTarget(), {
    aborted: false,
    reason: "reason",
    onabort: null,
    throwIfAborted() {},
    removeEventListener: throwing,
  });
  const release = await lock(dir.file, { signal });
  const waiter = lock(dir.file, { signal });
  signal.aborted = true;
  signal.dispatchEvent(new Event("abort"));
  assertEquals(await waiter.catch((reason) => reason), "reason");
  release();
  (await tryLock(dir.file))!();
});

Deno.test("lock() that is abandoned leaves no handle, thread, timer or lock", {
  sanitizeOps: true,
  sanitizeResources: true,
}, async () => {
  using dir = scene();
  using holder = theirs(dir.file);
  using _ = endlessPauses();
  const before = { threads: HAS_PROC ? threads() : 0, files: opened() };
  for (let i = 0; i < 20; i++) {
    const controller = new AbortController();
    const waiter = await waiting(dir.file, { signal: controller.signal });
    assertEquals(opened().length > before.files.length, HAS_PROC);
    controller.abort(i);
    assertEquals(await waiter.lock.catch((reason) => reason), i);
    assertEquals(opened(), before.files);
    for (let j = 0; j < i; j++) await null; // the next one waits all the same
  }
  if (HAS_PROC) assert(threads() <= before.threads + 1, `${threads()} threads`);
  holder.close();
  assertEquals(isFree(dir.file), true);
});

Deno.test("lock() with a signal asks after half to all of a fortieth of its own wait, 1 ms at least, 100 ms at most", async () => {
  using dir = scene();
  using _holder = theirs(dir.file);
  using _workers = replace(system, "startWorker", throwing); // it only polls
  for (const random of [0, 0.5, 1]) {
    using _ = replace(Math, "random", () => random);
    const [first, second] = [new AbortController(), new AbortController()];
    using time = fakeTime(() => {
      const pause = time.pauses.at(-1)!;
      const since = first.signal.aborted ? joined : start;
      const waited = time.now - pause - since;
      const longest = Math.min(waited / 40, 100) * (1 - random / 2);
      assert(Math.abs(pause - Math.max(longest, 1)) <= 1, `${pause}`);
      if (first.signal.aborted && waited > 5000) second.abort();
      if (waited > 5000) first.abort();
      if (waited < 2000 || waiters.length > 1) return;
      joined = time.now;
      waiters.push(lock(dir.file, second));
    });
    let joined = 0;
    const start = time.now;
    const waiters = [lock(dir.file, first)];
    await assertRejects(() => soon(waiters[0]), DOMException);
    await assertRejects(() => soon(waiters[1]), DOMException);
  }
});

// The queue of one thread

Deno.test("lock() calls of one process get the lock in the order in which they asked, and the abandoned ones leave at once", async () => {
  using dir = scene();
  const url = new URL(`file://${dir.file}`);
  const ways = ["/x.lock", "/./x.lock", "//x.lock", "/./././/x.lock/./"];
  const names = [url, ...ways.map((way) => `${dir.path}${way}`)];
  const release = await lock(dir.file);
  const controller = new AbortController();
  const order: number[] = [];
  const ask = async (i: number, signal?: AbortSignal) => {
    using _lock = await lock(names[i % names.length], { signal });
    order.push(i);
  };
  const waiters: Promise<void>[] = [];
  const abandoned: Promise<unknown>[] = [];
  for (let i = 0; i < 50; i++) {
    waiters.push(ask(i, i % 4 ? undefined : endless()));
    for (let j = 0; j < 200; j++) {
      abandoned.push(ask(i, controller.signal).catch((reason) => reason));
    }
  }
  controller.abort("reason");
  assertEquals(new Set(await soon(Promise.all(abandoned))).size, 1);
  const files = opened().filter((it) => it === dir.file);
  if (HAS_PROC) assertEquals(files.length, 1);
  release();
  await soon(Promise.all(waiters));
  assertEquals(order, Array.from({ length: 50 }, (_, i) => i));
});

// Giving way

for (const how of ["queued", "anew", "anew, while another program has it,"]) {
  Deno.test(`lock() asked for ${how} gives way once this process has had the lock for 100 ms on end`, async () => {
    using dir = scene();
    using time = fakeTime();
    using _ = replace(Math, "random", () => 0.9);
    for (let i = 0; i < 20; i++) {
      await time.hold(dir.file, 5);
      time.now += 0.5;
      if (i < 17) (await lock(dir.file))(); // without a gap
    }
    let waits = 0;
    const onWait = () => waits++;
    const release = (await tryLock(dir.file))!;
    const queued = how === "queued" ? lock(dir.file) : undefined;
    release();
    const next = queued ?? lock(dir.file, { onWait });
    const other = theirs(dir.file);
    const isTaken = how.includes("another");
    if (isTaken) await until(() => waits > 0);
    other.close();
    (await soon(next))();
    if (!isTaken) assertEquals(time.pauses, [16]); // 14 % of 110 ms
    assertEquals(waits, Number(isTaken));
  });
}

/** The milliseconds held, the random number, and the milliseconds of the gap. */
const GAPS = [[100, 0.01, 6], [1000, 0.015, 52], [1000, 0.99, 110]];

for (const [held, random, gap] of GAPS) {
  Deno.test(`lock() leaves the lock free for ${gap} ms after ${held} ms, and a shorter pause ends nothing`, async () => {
    using dir = scene();
    using _ = replace(Math, "random", () => random);
    using time = fakeTime();
    for (const pause of [gap - 2, gap + 1]) {
      for (let i = 0; i < 2; i++) {
        await time.hold(dir.file, held);
        time.now += pause;
      }
      (await lock(dir.file))();
      assertEquals(time.pauses.length > 0, pause < gap);
      time.pauses.length = 0;
      time.now += 200;
    }
    await time.hold(dir.file, held);
    (await lock(dir.file))();
    assertEquals(time.pauses, [gap]);
  });
}

Deno.test("lock() gives way to the end though another is abandoned, and leaves the path free once all are", async () => {
  using dir = scene();
  const controllers = [new AbortController(), new AbortController()];
  using time = fakeTime(() => {
    time.now -= time.pauses.at(-1)!; // no time passes
    if (time.pauses.length < 3) controllers[time.pauses.length - 1].abort("so");
  });
  await time.hold(dir.file, 1000);
  const waiters = controllers.map((controller) => lock(dir.file, controller));
  for (const waiter of waiters) {
    assertEquals(await waiter.catch((reason) => reason), "so");
  }
  (await tryLock(dir.file))!();
  await delay(0);
  assertEquals(time.pauses.length, 2);
});

// Waiting for another process

/** Waits in the system, says what has been written before, and holds a while. */
const LATER = `
  using file = Deno.openSync(args[0], { write: true });
  console.log("waits");
  file.lockSync(true);
  console.log(Deno.readTextFileSync(args[1]));
  await new Promise((resolve) => setTimeout(resolve, 400));`;

Deno.test("lock() with a signal stands in the queue", LINUX, async () => {
  using dir = scene();
  const note = resolve(dir.path, "note");
  for (let round = 0; round < 2; round++) { // more than luck
    let starts = 0;
    const { startWorker } = system;
    using _ = replace(system, "startWorker", (path) => {
      starts++;
      return startWorker(path);
    });
    Deno.writeTextFileSync(note, "too early");
    using holder = theirs(dir.file);
    const controller = new AbortController();
    const left = await waiting(dir.file, { signal: controller.signal });
    const first = await waiting(dir.file, { signal: endless() });
    await until(() => blocked(Deno.pid) === 1);
    // Joins them.
    const second = round === 0 ? await waiting(dir.file) : undefined;
    const third = await waiting(dir.file, { signal: endless() });
    await using stack = new AsyncDisposableStack();
    const later = [1, 2, 3].map(() =>
      stack.use(script(LATER, [dir.file, note]))
    );
    for (const peer of later) {
      await peer.line();
      await until(() => blocked(peer.pid) === 1);
    }
    controller.abort("enough");
    assertEquals(await left.lock.catch((reason) => reason), "enough");
    await until(() => blocked(Deno.pid) === 1);
    holder.close();
    const release = await soon(first.lock);
    Deno.writeTextFileSync(note, "in its turn");
    await delay(110); // so that this process gives way
    release();
    for (const peer of later) assertEquals(await peer.line(), "in its turn");
    if (second) (await soon(second.lock))();
    (await soon(third.lock))();
    assertEquals(starts, 1);
  }
});

Deno.test("lock() lets a script end whose other callers wait, though its timers are replaced", async () => {
  using dir = scene();
  using holder = theirs(dir.file);
  const code = `
    const { signal } = new AbortController();
    const [first] = [1, 2].map(() => lock(args[0], { signal }));
    setTimeout(() => console.log("waits"), 600);
    globalThis.setTimeout = () => 0;
    await first;`;
  await using child = script(code, [dir.file]);
  await child.line();
  holder.close();
  assertEquals((await child.ended()).code, 0);
});

Deno.test("lock() given up leaves two threads at most", LINUX, async () => {
  using dir = scene();
  using holder = theirs(dir.file);
  const code = `
    for (let i = 0; i < 4; i++) {
      const controller = new AbortController();
      const given = lock(args[0], controller).catch(() => {});
      if (i < 2) await heard();
      else await new Promise((resolve) => setTimeout(resolve, 500));
      controller.abort();
      await given;
    }
    console.log("given up");
    await heard();`;
  await using child = script(code, [dir.file]);
  for (const waits of [1, 2]) {
    await until(() => blocked(child.pid) === waits);
    await child.go();
  }
  assertEquals(await child.line(), "given up");
  await until(() => blocked(child.pid) === 2);
  await child.go();
  assertEquals((await child.ended()).code, 0);
  holder.close();
  assertEquals(isFree(dir.file), true);
});

Deno.test("lock() with a signal lets go in a busy loop", FLOCK, async () => {
  using dir = scene();
  using holder = theirs(dir.file);
  const waiter = await waiting(dir.file, { signal: endless() });
  await until(() => blocked(Deno.pid) === 1);
  holder.close();
  const args = ["-w", "20", dir.file, "true"];
  const { success } = new Deno.Command("flock", { args }).outputSync();
  assertEquals(success, true);
  (await soon(waiter.lock))();
});

for (const step of [0, 1, 6]) {
  Deno.test(`lock() polls where its worker ends at ${step}`, UNIX, async () => {
    using dir = scene();
    let starts = 0;
    using _ = replace(system, "startWorker", () => {
      starts++;
      const worker = new EventTarget() as Worker;
      const postMessage = ([, last]: [string, Int32Array]) => last.fill(step);
      return Object.assign(worker, { terminate: () => {}, postMessage });
    });
    for (let i = 1; i <= 9; i++) { // more than may be left where locks are busy
      using holder = theirs(`${dir.file}${i}`);
      const controller = new AbortController();
      const { signal } = controller;
      const waiter = await waiting(`${dir.file}${i}`, { signal });
      await until(() => starts >= i);
      if (i < 9) controller.abort();
      else holder.close();
      if (i === 9) (await soon(waiter.lock))();
    }
  });
}

Deno.test("lock() stands in the system at once when somebody joins, and for one other file when a place there is free", async () => {
  using dir = scene();
  const paths = Array.from({ length: 5 }, (_, i) => `${dir.file}${i}`);
  const holders = paths.map(theirs);
  using waits = countWaits();
  using _ = endlessPauses();
  const controller = new AbortController();
  const pollers = [lock(paths[0], controller), lock(paths[4], controller)];
  for (const poller of pollers) poller.catch(() => {});
  await delay(0);
  const waiters = [lock(paths[0])];
  await delay(0);
  assertEquals(waits.count, 1);
  waiters.push(...paths.slice(1, 4).map((path) => lock(path)));
  await delay(0);
  assertEquals(waits.count, 2);
  controller.abort();
  for (const i of [0, 1]) {
    holders[i].close();
    (await soon(waiters[i]))();
    await delay(0);
    assertEquals(waits.count, 3 + i);
  }
  for (const holder of holders) holder[Symbol.dispose]();
  for (const waiter of waiters.slice(2)) (await soon(waiter))();
});

Deno.test("lock() of many files keeps what is held or left to others, and nothing of the rest", async () => {
  using dir = scene();
  let table = new Map<unknown, unknown>();
  const { set } = Map.prototype;
  const see = function (this: typeof table, key: unknown, it: unknown) {
    if (key === dir.file) table = this;
    return set.call(this, key, it);
  };
  using _ = replace(Map.prototype, "set", see);
  using waits = countWaits();
  using time = fakeTime();
  const owed = `${dir.file}.owed`;
  const release = await lock(dir.file);
  const releaseOwed = await lock(owed);
  time.now += 60_000;
  releaseOwed();
  for (let i = 0; i < 1000; i++) (await tryLock(`${dir.file}${i}`))!();
  assert(table.size > 0 && table.size < 500, `${table.size}`);
  const next = lock(dir.file);
  (await lock(owed))();
  assert(time.pauses[0] > 50 && time.pauses.length === 1, `${time.pauses}`);
  await delay(0);
  assertEquals(waits.count, 0);
  release();
  (await soon(next))();
});

Deno.test("lock() of many files leaves the process's other file operations alone, and each wait stands in the system in its turn", async () => {
  using dir = scene();
  const paths = Array.from({ length: 40 }, (_, i) => `${dir.file}${i}`);
  const holders = paths.map(theirs);
  // In a process of its own: not every runtime has the pool of `deno run`.
  const code = `
    const waiters = args.map((path) => lock(path));
    await new Promise((resolve) => setTimeout(resolve)); // all of them wait now
    console.log((await Deno.stat(args[0])).size);
    for (const waiter of waiters) {
      (await waiter)();
      console.log("granted");
    }`;
  await using child = script(code, paths);
  assertEquals(await child.line(), "0");
  while (holders.length > 0) {
    // A Windows machine with one core has a pool of four threads.
    if (HAS_PROC) await until(() => blocked(child.pid) === 2);
    for (const holder of holders.splice(0, 2)) {
      holder.close();
      assertEquals(await child.line(), "granted");
    }
  }
});

// The right file

for (const sign of ["links of the deleted one", "birth time", "last write"]) {
  Deno.test(`lock() tells a new file without a number by the ${sign}`, async () => {
    using dir = scene();
    const alike = (real: Deno.FileInfo) => ({
      ...real,
      ino: null,
      // Where links tell nothing, the last write does.
      ...sign.startsWith("links") ? {} : { nlink: 1 },
      birthtime: new Date(sign === "birth time" ? real.size : 0),
    });
    using _open = replaceOfFiles("statSync", (statSync) => alike(statSync()));
    using _path = fakeStat(alike);
    const holder = theirs(dir.file);
    const { mtime } = holder.statSync();
    const waiter = await waiting(dir.file, { signal: endless() });
    Deno.removeSync(dir.file);
    Deno.writeTextFileSync(dir.file, "new");
    const write = sign === "last write" ? new Date(1) : mtime!;
    Deno.utimeSync(dir.file, write, write);
    holder.close();
    using _lock = await soon(waiter.lock);
    assertEquals(isFree(dir.file), false);
  });
}

// Crashes and strangers

Deno.test("lock() of a process that is killed before its child is freed", async () => {
  using dir = scene();
  const code = `
    await lock(args[0]);
    const sleep = ["eval", "await new Promise((go) => setTimeout(go, 60000))"];
    const child = new Deno.Command(Deno.execPath(), { args: sleep }).spawn();
    console.log(child.pid);
    await heard();`;
  await using holder = script(code, [dir.file]);
  const child = Number(await holder.line());
  assertEquals(await tryLock(dir.file), null);
  const waiter = await waiting(dir.file);
  holder.kill();
  (await soon(waiter.lock))();
  if (!WINDOWS) Deno.kill(child, "SIGKILL"); // Windows ends it with its parent
});

Deno.test("lock() of a worker that is terminated is freed", async () => {
  using dir = scene();
  const code = `
    import { lock } from "${import.meta.resolve("../lock.ts")}";
    await lock(${JSON.stringify(dir.file)});
    postMessage("held");`;
  const url = `data:application/typescript,${encodeURIComponent(code)}`;
  const worker = new Worker(url, { type: "module" });
  await new Promise((resolve) => worker.onmessage = resolve);
  const waiter = await waiting(dir.file);
  worker.terminate();
  (await soon(waiter.lock))();
});

Deno.test("lock() changes neither the content nor the length of a file, nor a link to it", async () => {
  using dir = scene();
  const data = resolve(dir.path, "data");
  Deno.writeTextFileSync(data, "precious");
  const { mtime } = Deno.statSync(data);
  if (CAN_LINK) Deno.symlinkSync(data, dir.file);
  const path = CAN_LINK ? dir.file : data;
  const release = await lock(path);
  const next = lock(path, { signal: endless() });
  release();
  (await next)();
  (await tryLock(path))!();
  assertEquals(Deno.readTextFileSync(data), "precious");
  assertEquals(Deno.statSync(data).mtime, mtime);
  assertEquals(Deno.lstatSync(path).isSymlink, CAN_LINK);
});

Deno.test("lock() locks a file that it may only read", async () => {
  using dir = scene();
  Deno.writeTextFileSync(dir.file, "");
  const code = `
    (await lock(args[0]))();
    const release = await tryLock(args[0]);
    console.log("held");
    await heard();`;
  await using child = script(code, [dir.file], [`--allow-read=${dir.path}`]);
  assertEquals(await child.line(), "held");
  assertEquals(isFree(dir.file), false);
});

// Refusals

/** Prints what becomes of lock() and tryLock(). */
const TELL = `
  for (const acquire of [lock, tryLock]) {
    const error = await acquire(args[0]).catch((error) => error);
    const { name, code = "none", message, constructor, cause } = error;
    const isKept = constructor === cause.constructor && error.code === cause.code;
    console.log(isKept && name, code, message);
  }`;

/** Checks what TELL prints. Windows has classes, codes and messages of its own. */
async function told(child: Peer, how: string, message: string): Promise<void> {
  for (let i = 0; i < 2; i++) {
    const line = await child.line();
    const isTold = !WINDOWS || /none|ENOENT/.test(how)
      ? line.startsWith(`${how} ${message}`)
      : line.includes(message.split(": ")[0]) && !line.startsWith("false");
    assert(isTold, line);
  }
}

/** Where a lock is refused, and to whom. */
type Refused = { ignore?: boolean; permissions?: string[]; under?: string[] };
const user: Refused = {
  ignore: WINDOWS || IS_ROOT && !HAS_SETPRIV,
  under: IS_ROOT ? POWERLESS : [],
};
const full = { ignore: !CAN_MOUNT, under: onTmpfs("nr_inodes=1", ".") };
const lockless = (error: string) => ({
  ignore: !HAS_STRACE,
  under: ["strace", "-f", "-qq", "-o", "trace", "-e", "trace=flock"]
    .concat("-e", `inject=flock:error=${error}`),
});

/** Paths from a directory that the test fills, and how they are refused. */
const REFUSALS: [string, string, string, Refused?][] = [
  ["sealed", "IsADirectory EISDIR", "it is a directory; name a file in it"],
  ["missing/x", "NotFound ENOENT", "its directory is missing; create it first"],
  ["/proc/missing", "NotFound ENOENT", "No such file", LINUX],
  ["link", "NotFound ENOENT", "it is a symbolic link to a missing file", LINKS],
  ["file/x", "NotADirectory ENOTDIR", "Not a directory"],
  ["x".repeat(300), "Error ENAMETOOLONG", "File name too long"],
  ["unreadable", "PermissionDenied EACCES", "allow reading it", user],
  ["pipe", "PermissionDenied EACCES", "allow reading and writing it", user],
  ["sealed/x", "PermissionDenied EACCES", "allow writing to its dir", user],
  ["sealed", "NotCapable none", "it is a directory; name a file in it", READ],
  ["file", "NotCapable none", "Requires read access", { permissions: [] }],
  ["pipe", "NotCapable none", "Requires write access", { ...UNIX, ...READ }],
  ["x.lock", "Error ENOSPC", "No space", full],
  ["file", "Error ENOTSUP", "its file system refuses", lockless("EOPNOTSUPP")],
  ["file", "TypeError EINVAL", "its file system refuses", lockless("EINVAL")],
];

for (const [name, how, message, refused = {}] of REFUSALS) {
  const { ignore, permissions, under } = refused;
  Deno.test(`lock() refuses by ${how}: ${message}`, { ignore }, async () => {
    using dir = scene();
    const at = (name: string) => resolve(dir.path, name);
    Deno.writeTextFileSync(at("file"), "");
    Deno.writeTextFileSync(at("unreadable"), "", { mode: 0 });
    // Opening it for reading only would wait for a writer.
    const fifo = ["-m", "444", at("pipe")];
    if (!WINDOWS) new Deno.Command("mkfifo", { args: fifo }).outputSync();
    Deno.mkdirSync(at("sealed"), { mode: 0o555 });
    if (CAN_LINK) Deno.symlinkSync("missing/x", at("link"), { type: "file" });
    const code = `${TELL} console.log(Deno.pid); await heard();`;
    const options = { under, cwd: dir.path };
    await using child = script(code, [at(name)], permissions, options);
    await told(child, how, `Cannot lock ${at(name)}: ${message}`);
    const pid = Number(await child.line()); // not that of strace
    if (HAS_PROC) assertEquals(openFiles(pid).includes(at(name)), false);
  });
}

Deno.test("lock() tells too many open files, or polls", UNIX, async () => {
  using dir = scene();
  const code = `
    const files = [];
    try {
      for (;;) files.push(Deno.openSync(args[1]));
    } catch {}
    ${TELL}
    for (const file of files.splice(-6)) file.close();
    const options = { signal: AbortSignal.timeout(600) };
    await lock(args[0], options).catch(({ name }) => console.log(name));
    await heard();
    for (const file of files) file.close();
    (await lock(args[0]))();
    console.log("locked");`;
  const under = ["sh", "-c", 'ulimit -n 100; exec "$@"', "sh"];
  using holder = theirs(dir.file);
  const args = [dir.file, dir.path];
  await using child = script(code, args, undefined, { under });
  await told(child, "Error EMFILE", `Cannot lock ${dir.file}: Too many`);
  assertEquals(await child.line(), "TimeoutError");
  holder.close();
  await child.go();
  assertEquals(await child.line(), "locked");
});

Deno.test("lock() and tryLock() try again where a signal of the system interrupts them", async () => {
  using dir = scene();
  let tries = 0;
  let waits = 0;
  const interrupt = () => {
    throw new Deno.errors.Interrupted("as flock(2) may");
  };
  using _try = replaceOfFiles(
    "tryLockSync",
    (tryLockSync) => ++tries < 3 ? interrupt() : tryLockSync(true),
  );
  using _wait = replaceOfFiles(
    "lock",
    async (lock) => ++waits < 3 ? interrupt() : await lock(true),
  );
  (await tryLock(dir.file))!();
  const holder = theirs(dir.file);
  const next = lock(dir.file);
  await until(() => waits === 3);
  assertEquals(isFree(dir.file), false);
  holder.close();
  (await soon(next))();
});

Deno.test("lock() refuses a wait that the system breaks off, and leaves nothing open", async () => {
  using dir = scene();
  using holder = theirs(dir.file);
  const before = opened();
  {
    const refused = () => Promise.reject(new Error("No locks available"));
    using _ = replace(Deno.FsFile.prototype, "lock", refused);
    using waits = countWaits();
    const message = `Cannot lock ${dir.file}: `;
    for (const waiter of [lock(dir.file), lock(dir.file)]) {
      const error = await assertRejects(() => soon(waiter), Error, message);
      assertEquals((error.cause as Error).message, "No locks available");
    }
    assertEquals(waits.count, 1); // for both
  }
  assertEquals(opened(), before);
  holder.close();
  (await lock(dir.file))();
});

Deno.test("lock() and tryLock() refuse a file that may not be looked at, and leave nothing open", async () => {
  using dir = scene();
  for (const acquire of [lock, tryLock]) {
    {
      using _ = fakeStat(() => {
        throw new PermissionDenied("as Deno may");
      });
      const message = `Cannot lock ${dir.file}: `;
      await assertRejects(() => acquire(dir.file), PermissionDenied, message);
    }
    assertEquals(isFree(dir.file), true);
    (await acquire(dir.file))!();
  }
});

Deno.test("lock() of a file that seems to be on another disk each time says that it waits, and can be given up", async () => {
  using dir = scene();
  let calls = 0;
  {
    using _ = fakeStat(({ dev }) => ({ dev: dev + Math.random() }));
    const options = { signal: AbortSignal.timeout(50), onWait: () => calls++ };
    const error = await lock(dir.file, options).catch((error) => error);
    assertEquals(error.name, "TimeoutError");
    assertEquals(await tryLock(dir.file), null);
  }
  assertEquals(calls, 1);
  using _ = fakeStat(() => ({ mtime: new Date(1) })); // anybody may write to it
  (await tryLock(dir.file))!();
});

// tryLock() and the release

Deno.test("tryLock() returns null where this process holds the lock or waits for it, though it is free", async () => {
  using dir = scene();
  const release = await tryLock(dir.file);
  Deno.removeSync(dir.file); // only others may lock a new one
  assertEquals(await tryLock(dir.file), null);
  release!();
  using holder = theirs(dir.file);
  const waiter = await waiting(dir.file, { signal: endless() });
  holder.close();
  assertEquals(await tryLock(dir.file), null);
  (await soon(waiter.lock))();
  (await tryLock(dir.file))!();
});

Deno.test("Release releases once, by a call or by using, even if unlocking fails, and leaves another's lock", async () => {
  using dir = scene();
  const first = await lock(dir.file);
  const next = lock(dir.file);
  assertEquals(first(), undefined);
  const second = await next;
  first();
  first[Symbol.dispose]();
  assertEquals(isFree(dir.file), false);
  using _ = replace(Deno.FsFile.prototype, "unlockSync", throwing);
  second[Symbol.dispose]();
  assertEquals(isFree(dir.file), true);
  second();
});
