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
  openFileAt,
  openFiles,
  Peer,
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

const { NotFound, PermissionDenied } = Deno.errors;
const LINUX = { ignore: !HAS_PROC };
const MOUNTS = { ignore: !CAN_MOUNT };
const STRACE = { ignore: !HAS_STRACE };
const UNIX = { ignore: WINDOWS };

/** Locks a file as a program that does not use the library. */
function theirs(path: string): Deno.FsFile {
  const file = Deno.openSync(path, { write: true, create: true });
  assertEquals(file.tryLockSync(true), true);
  return file;
}

/** A wait that is under way, and how often `onWait` was called. */
async function waiting(path: string, options: LockOptions = {}) {
  let calls = 0;
  const waiter = lock(path, { ...options, onWait: () => calls++ });
  waiter.catch(() => {}); // it is for the test to await
  await until(() => calls > 0);
  if (!options.signal && HAS_PROC) await until(() => blocked(Deno.pid) > 0);
  return { lock: waiter, calls: () => calls };
}

/** A signal that nobody aborts. */
const endless = () => new AbortController().signal;

/** An `onWait` that throws. */
const throwing = () => {
  throw new RangeError("from onWait");
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
  const time = { now, pauses, [Symbol.dispose]: () => stack.dispose() };
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

/** Starts no worker, so that a wait with a signal only polls. */
const withoutWorkers = () =>
  replace(system, "startWorker", () => {
    throw new Error("no free thread");
  });

/** Makes Deno find something else about the file at each path. */
function fakeStat(
  fake: (real: Deno.FileInfo) => Partial<Deno.FileInfo>,
): Disposable {
  const { statSync } = Deno;
  return replace(Deno, "statSync", (path) => {
    const real = statSync(path);
    return { ...real, ...fake(real) };
  });
}

// The file

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
  await assertRejects(refused, RangeError, "from onWait");
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
  class Signal extends EventTarget implements AbortSignal {
    aborted = false;
    reason: unknown;
    onabort = null;
    throwIfAborted() {}
    override removeEventListener() {
      throw new Error("as a class of one's own may");
    }
    abort(reason: unknown) {
      Object.assign(this, { aborted: true, reason });
      this.dispatchEvent(new Event("abort"));
    }
  }
  const signal = new Signal();
  const release = await lock(dir.file, { signal });
  const waiter = lock(dir.file, { signal });
  signal.abort("reason");
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
  }
  if (HAS_PROC) assert(threads() <= before.threads + 1, `${threads()} threads`);
  holder.close();
  assertEquals(isFree(dir.file), true);
});

Deno.test("lock() with a signal asks after half to all of a fortieth of its wait, 1 ms at least, 100 ms at most", async () => {
  using dir = scene();
  using _holder = theirs(dir.file);
  using _workers = withoutWorkers();
  for (const random of [0, 0.5, 1]) {
    using _ = replace(Math, "random", () => random);
    const controller = new AbortController();
    using time = fakeTime(() => {
      const pause = time.pauses.at(-1)!;
      const waited = time.now - pause - start;
      const longest = Math.min(waited / 40, 100) * (1 - random / 2);
      assert(Math.abs(pause - Math.max(longest, 1)) <= 1, `${pause}`);
      if (waited > 5000) controller.abort();
    });
    const start = time.now;
    await assertRejects(() => soon(lock(dir.file, controller)), DOMException);
  }
});

Deno.test("lock() with a signal pauses for its own wait, not for that of one who left", async () => {
  using dir = scene();
  using _holder = theirs(dir.file);
  using _workers = withoutWorkers();
  const [first, second] = [new AbortController(), new AbortController()];
  let then = 0;
  using time = fakeTime(() => {
    if (then > 0) return second.abort();
    if (time.pauses.at(-1)! < 40) return;
    waiters.push(lock(dir.file, second));
    then = time.pauses.length;
    first.abort();
  });
  const waiters = [lock(dir.file, first)];
  await Promise.allSettled(waiters);
  await soon(Promise.allSettled(waiters));
  assertEquals(time.pauses[then], 1);
});

Deno.test("lock() waits though the global timers are replaced", async () => {
  using dir = scene();
  using holder = theirs(dir.file);
  const code = `
    globalThis.setTimeout = () => 0;
    globalThis.clearTimeout = () => {};
    performance.now = () => 0;
    const { signal } = new AbortController();
    const onWait = () => console.log("waiting");
    (await lock(args[0], { signal, onWait }))();
    const builds = [1, 2].map(async () => {
      using _lock = await lock(args[0] + "2");
      await new Deno.Command("sleep", { args: ["0.11"] }).output();
    });
    await Promise.all(builds);
    console.log("done");`;
  await using child = script(code, [dir.file]);
  assertEquals(await child.line(), "waiting");
  holder.close();
  assertEquals(await child.line(), "done");
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
  release();
  await soon(Promise.all(waiters));
  assertEquals(order, Array.from({ length: 50 }, (_, i) => i));
});

Deno.test("lock() called 1000 times takes few resources", LINUX, async () => {
  using dir = scene();
  using holder = theirs(dir.file);
  const before = { threads: threads(), files: openFiles() };
  const locks = Array.from({ length: 1000 }, () => lock(dir.file));
  const waiters = locks.map(async (waiter) => (await waiter)());
  await until(() => blocked(Deno.pid) > 0);
  const added = threads() - before.threads;
  assert(added <= 5, `${added} threads`);
  // Deno holds a second descriptor of the same open file while one waits.
  const descriptors = openFiles().length - before.files.length;
  assert(descriptors <= 2, `${descriptors} descriptors`);
  holder.close();
  await soon(Promise.all(waiters));
  assertEquals(openFiles().includes(dir.file), false);
});

// Giving way

for (const kind of ["queued", "asking anew", "locking other files, too,"]) {
  Deno.test(`lock() of a caller ${kind} gives way once this process has had the lock for 100 ms on end`, async () => {
    using dir = scene();
    using time = fakeTime();
    using _ = replace(Math, "random", () => 0.9);
    for (let i = 0; i < 20; i++) {
      const release = await tryLock(dir.file); // which gives no way
      time.now += 5;
      release!();
      time.now += 0.5;
      if (kind.includes("other")) (await tryLock(`${dir.file}${i}`))!();
    }
    let waits = 0;
    const onWait = () => waits++;
    const release = (await tryLock(dir.file))!;
    const queued = kind === "queued" ? lock(dir.file) : undefined;
    release();
    const next = queued ?? lock(dir.file, { onWait });
    theirs(dir.file).close();
    (await soon(next))();
    assertEquals(time.pauses, [16]); // 14 % of 110 ms
    assertEquals(waits, 0); // nobody else held it
  });
}

Deno.test("lock() keeps the lock in the process up to 100 ms, also of callers that compute at their turn", async () => {
  using dir = scene();
  using time = fakeTime();
  const first = await lock(dir.file);
  const waiters = [lock(dir.file), lock(dir.file)];
  time.now += 99;
  first();
  assertEquals(isFree(dir.file), false);
  time.now += 2; // the next one has the lock by now, but does not know it yet
  (await waiters[0])();
  theirs(dir.file).close();
  (await soon(waiters[1]))();
  assertEquals(time.pauses.length, 1);
});

for (
  const { held, random, gap } of [
    { held: 100, random: 0.01, gap: 6 },
    { held: 1000, random: 0.015, gap: 52 },
    { held: 1000, random: 0.99, gap: 110 },
    { held: 60_000, random: 0.01, gap: 110 },
  ]
) {
  Deno.test(`lock() leaves the lock free for ${gap} ms after ${held} ms, and a shorter pause ends nothing`, async () => {
    using dir = scene();
    using _ = replace(Math, "random", () => random);
    using time = fakeTime();
    for (const pause of [gap - 2, gap + 1]) {
      for (let i = 0; i < 2; i++) {
        const release = (await tryLock(dir.file))!;
        time.now += held;
        release();
        time.now += pause;
      }
      (await lock(dir.file))();
      assertEquals(time.pauses.length > 0, pause < gap);
      time.pauses.length = 0;
      time.now += 200;
    }
    const release = await lock(dir.file);
    time.now += held;
    release();
    (await lock(dir.file))();
    assertEquals(time.pauses, [gap]);
  });
}

Deno.test("lock() calls onWait where another one takes the lock that it gave way to", async () => {
  using dir = scene();
  using time = fakeTime();
  const { promise: told, resolve: onWait } = Promise.withResolvers<void>();
  const release = await lock(dir.file);
  time.now += 100;
  release();
  const again = lock(dir.file, { onWait });
  const other = theirs(dir.file);
  await soon(told);
  other.close();
  (await soon(again))();
});

Deno.test("lock() gives way to the end though another is abandoned, and leaves the path free once all are", async () => {
  using dir = scene();
  const controllers = [new AbortController(), new AbortController()];
  using time = fakeTime(() => {
    time.now -= time.pauses.at(-1)!; // no time passes
    if (time.pauses.length < 3) controllers[time.pauses.length - 1].abort("so");
  });
  const release = await lock(dir.file);
  time.now += 1000;
  release();
  const waiters = controllers.map((controller) => lock(dir.file, controller));
  for (const waiter of waiters) {
    assertEquals(await waiter.catch((reason) => reason), "so");
  }
  (await tryLock(dir.file))!();
  await delay(0);
  assertEquals(time.pauses.length, 2);
});

Deno.test("lock() polls again once nobody without a signal waits any more", async () => {
  using dir = scene();
  using waits = countWaits();
  using stack = new DisposableStack();
  using time = fakeTime(() => {
    if (time.pauses.length === 1) stack.use(theirs(dir.file));
    if (time.pauses.length === 6) stack.dispose();
  });
  const first = await lock(dir.file);
  const patient = lock(dir.file);
  const polling = lock(dir.file, { signal: endless() });
  await delay(0);
  first();
  const release = await patient;
  time.now += 100;
  release(); // gives way, and another one takes the lock
  (await soon(polling))();
  assertEquals(waits.count, 0);
});

for (const loops of [1, 4]) {
  Deno.test(`lock() lets in a program that tries every 100 ms, beside so many loops of one process: ${loops}`, async () => {
    using dir = scene();
    const code = `
      const again = async () => {
        for (;;) {
          using _lock = await lock(args[0]);
          await new Promise((resolve) => setTimeout(resolve, 5));
        }
      };
      for (let i = 0; i < ${loops}; i++) again();
      console.log("started");
      await heard();
      Deno.exit();`;
    await using busy = script(code, [dir.file]);
    await busy.line();
    for (let i = 0; i < 5; i++) { // more than luck
      using file = Deno.openSync(dir.file, { write: true, create: true });
      const signal = AbortSignal.timeout(30_000);
      while (!file.tryLockSync(true)) await delay(100, { signal });
    }
  });
}

// Waiting for another process

/** Waits in the system, says what has been written before, and holds a while. */
const LATER = `
  using file = Deno.openSync(args[0], { write: true });
  console.log("waits");
  file.lockSync(true);
  console.log(Deno.readTextFileSync(args[1]));
  await new Promise((resolve) => setTimeout(resolve, 400));`;

Deno.test(
  "lock() with a signal stands in the system before those who ask later",
  LINUX,
  async () => {
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
      assertEquals(blocked(Deno.pid), 1);
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
  },
);

Deno.test(
  "lock() that gives up its place lets the script end, and leaves two threads at most until the lock is free",
  LINUX,
  async () => {
    using dir = scene();
    using holder = theirs(dir.file);
    const code = `
    for (let i = 0; i < 4; i++) {
      const signal = AbortSignal.timeout(500);
      await lock(args[0], { signal }).catch((error) => error === signal.reason);
    }
    console.log(Deno.readTextFileSync("/proc/self/status"));
    await heard();`;
    await using child = script(code, [dir.file]);
    let threads = "";
    while (!threads.startsWith("Threads:")) threads = await child.line();
    assert(blocked(child.pid) === 2, `${blocked(child.pid)} waits`);
    await child.go();
    assertEquals((await child.ended()).code, 0);
    holder.close();
    assertEquals(isFree(dir.file), true);
  },
);

Deno.test(
  "lock() with a signal lets go where its event loop waits for a program that needs the lock",
  {
    ignore: !HAS_PROC || !has("flock"),
  },
  async () => {
    using dir = scene();
    using holder = theirs(dir.file);
    const waiter = await waiting(dir.file, { signal: endless() });
    await until(() => blocked(Deno.pid) === 1);
    holder.close();
    const args = ["-w", "20", dir.file, "true"];
    const { success } = new Deno.Command("flock", { args }).outputSync();
    assertEquals(success, true);
    (await soon(waiter.lock))();
  },
);

for (const how of ["silent", "failing", "refused"]) {
  Deno.test(`lock() with a signal polls where the worker is ${how}`, async () => {
    using dir = scene();
    using holder = theirs(dir.file);
    let starts = 0;
    using _ = replace(system, "startWorker", () => {
      starts++;
      const worker = new EventTarget() as Worker;
      worker.terminate = () => {};
      worker.postMessage = () => {
        if (how === "refused") throw new Error("as the test wants");
        if (how === "failing") {
          setTimeout(() =>
            worker.onmessage?.(new MessageEvent("message", { data: false }))
          );
        }
      };
      return worker;
    });
    const waiter = await waiting(dir.file, { signal: endless() });
    await until(() => starts > 0);
    holder.close();
    (await soon(waiter.lock))();
  });
}

Deno.test("lock() looks again at once when somebody joins, and at one other file when a place in the system is free", async () => {
  using dir = scene();
  const paths = Array.from({ length: 5 }, (_, i) => `${dir.file}${i}`);
  const holders = paths.map(theirs);
  using waits = countWaits();
  const tried = new Set<Deno.FsFile>();
  using _tries = replaceOfFiles("tryLockSync", (tryLockSync, file) => {
    tried.add(file);
    return tryLockSync(true);
  });
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
    tried.clear();
    holders[i].close();
    (await soon(waiters[i]))();
    await delay(0);
    assertEquals(waits.count, 3 + i);
    assertEquals(tried.size, 1);
  }
  for (const holder of holders) holder[Symbol.dispose]();
  for (const waiter of waiters.slice(2)) (await soon(waiter))();
});

Deno.test("lock() asked for just as the last waiter leaves waits like any other", async () => {
  using dir = scene();
  for (let microtasks = 0; microtasks < 12; microtasks++) {
    using holder = theirs(dir.file);
    const controller = new AbortController();
    const abandoned = lock(dir.file, controller).catch((reason) => reason);
    await delay(0);
    controller.abort("reason");
    for (let i = 0; i < microtasks; i++) await null;
    const next = lock(dir.file, { signal: endless() });
    assertEquals(await abandoned, "reason");
    holder.close();
    (await soon(next))();
  }
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

Deno.test("lock() whose directory is deleted excludes its own process to the end, and those who wait hear of it", async () => {
  using dir = scene();
  const release = await lock(dir.file);
  Deno.removeSync(dir.path, { recursive: true });
  assertEquals(await tryLock(dir.file), null);
  const waiters = [lock(dir.file), lock(dir.file)];
  release();
  for (const waiter of waiters) {
    await assertRejects(() => soon(waiter), NotFound, "directory is missing");
  }
  Deno.mkdirSync(dir.path);
  (await tryLock(dir.file))!();
});

Deno.test("tryLock() knows another file by its disk, and no file by its last write", async () => {
  using dir = scene();
  {
    using _ = fakeStat(() => ({ mtime: new Date(1) }));
    (await tryLock(dir.file))!();
  }
  using _ = fakeStat(({ dev }) => ({ dev: dev + 1 }));
  assertEquals(await tryLock(dir.file), null);
});

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

// Crashes

for (const how of ["is killed before its child", "exits before it", "throws"]) {
  Deno.test(`lock() of a process that ${how} is freed`, async () => {
    using dir = scene();
    const code = `
      await lock(args[0]);
      const sleep = ["eval", "await new Promise((go) => setTimeout(go, 60000))"];
      const child = new Deno.Command(Deno.execPath(), { args: sleep }).spawn();
      console.log(child.pid);
      await heard();
      if (args[1].startsWith("exits")) Deno.exit(3);
      throw "an uncaught error, as the test wants";`;
    await using holder = script(code, [dir.file, how]);
    const child = Number(await holder.line());
    assertEquals(await tryLock(dir.file), null);
    const waiter = await waiting(dir.file);
    if (how.startsWith("is killed")) holder.kill();
    else await holder.go();
    (await soon(waiter.lock))();
    // Windows ends it with its parent, and Deno does so when it throws.
    if (!WINDOWS && how !== "throws") Deno.kill(child, "SIGKILL");
  });
}

for (
  const [how, end] of [
    ["ends", "close();"],
    ["is terminated", ""],
    ["throws", `setTimeout(() => { throw "as the test wants"; });`],
  ]
) {
  Deno.test(`lock() of a worker that ${how} is freed`, async () => {
    using dir = scene();
    const code = `
      import { lock } from "${import.meta.resolve("../lock.ts")}";
      await lock(${JSON.stringify(dir.file)});
      postMessage("held");
      onmessage = () => { ${end} };`;
    const url = `data:application/typescript,${encodeURIComponent(code)}`;
    const worker = new Worker(url, { type: "module" });
    const ended = new Promise((resolve) => {
      worker.onerror = (event) => (event.preventDefault(), resolve(event));
    });
    await new Promise((resolve) => worker.onmessage = resolve);
    const waiter = await waiting(dir.file);
    if (how === "is terminated") worker.terminate();
    else worker.postMessage("end");
    (await soon(waiter.lock))();
    if (how === "throws") await soon(ended);
    worker.terminate();
  });
}

// Strangers

Deno.test("lock() and flock(2) in Python exclude each other", {
  ignore: WINDOWS || !has("python3"),
}, async () => {
  using dir = scene();
  const attempt = `import fcntl, sys
file = open(sys.argv[1], "a")
fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)`;
  const hold = `${attempt}\nprint("held", flush=True)\nsys.stdin.readline()`;
  await using holder = new Peer("python3", ["-c", hold, dir.file]);
  await holder.line();
  assertEquals(await tryLock(dir.file), null);
  const waiter = await waiting(dir.file);
  await holder.go();
  const release = await soon(waiter.lock);
  const args = ["-c", attempt, dir.file];
  const attempted = new Deno.Command("python3", { args, stderr: "null" });
  assertEquals(attempted.outputSync().success, false);
  release();
  assertEquals(attempted.outputSync().success, true);
});

// Never written

for (const kind of ["file", "link"]) {
  Deno.test(`lock() changes neither content nor length of a ${kind}`, {
    ignore: kind === "link" && !CAN_LINK,
  }, async () => {
    using dir = scene();
    const data = resolve(dir.path, "data");
    Deno.writeTextFileSync(data, "precious");
    if (kind === "link") Deno.symlinkSync(data, dir.file);
    const path = kind === "link" ? dir.file : data;
    const { mtime } = Deno.statSync(data);
    const release = await lock(path);
    const next = lock(path, { signal: endless() });
    release();
    (await next)();
    (await tryLock(path))!();
    assertEquals(Deno.readTextFileSync(data), "precious");
    assertEquals(Deno.statSync(data).mtime, mtime);
    assertEquals(Deno.lstatSync(path).isSymlink, kind === "link");
  });
}

Deno.test("lock() opens the file for reading and writing", LINUX, async () => {
  using dir = scene();
  using _lock = await lock(dir.file);
  const fd = [...Deno.readDirSync("/proc/self/fd")]
    .find(({ name }) => openFileAt(name) === dir.file)!.name;
  const info = Deno.readTextFileSync(`/proc/self/fdinfo/${fd}`);
  const flags = parseInt(/^flags:\s+(\d+)$/m.exec(info)![1], 8);
  assertEquals(flags & 0o3, 2); // O_RDWR
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

/** Paths from a directory that the test fills, and how they are refused. */
const REFUSALS = [
  ["directory", "IsADirectory EISDIR", "it is a directory; name a file in it"],
  ["missing/x", "NotFound ENOENT", "its directory is missing; create it first"],
  ["/proc/missing", "NotFound ENOENT", "No such file"],
  ["link", "NotFound ENOENT", "it is a symbolic link to a missing file"],
  ["file/x", "NotADirectory ENOTDIR", "Not a directory"],
  ["x".repeat(300), "Error ENAMETOOLONG", "File name too long"],
];

for (const [name, how, message] of REFUSALS) {
  Deno.test(`lock() and tryLock() refuse a path, and say: ${message}`, {
    ignore: name.startsWith("/") && !HAS_PROC || name === "link" && !CAN_LINK,
  }, async () => {
    using dir = scene();
    const at = (name: string) => resolve(dir.path, name);
    Deno.mkdirSync(at("directory"));
    Deno.writeTextFileSync(at("file"), "");
    if (CAN_LINK) {
      Deno.symlinkSync(at("missing/x"), at("link"), { type: "file" });
    }
    const before = opened();
    for (const acquire of [lock, tryLock]) {
      const error = await acquire(at(name)).catch((error) => error);
      assertEquals(error.constructor, error.cause.constructor);
      assertEquals(error.code, error.cause.code);
      // Windows has classes, codes and messages of its own.
      const isKnown = !WINDOWS || how.endsWith("ENOENT");
      const start = `Cannot lock ${at(name)}: ${isKnown ? message : ""}`;
      assert(error.message.startsWith(start), error.stack);
      if (isKnown) assert(`${error.name} ${error.code}`.startsWith(how));
    }
    assertEquals(opened(), before);
  });
}

/** Prints what becomes of lock() and tryLock(). */
const TELL = `
  for (const acquire of [lock, tryLock]) {
    await acquire(args[0]).catch(({ name, code = "none", message }) =>
      console.log(name, code, message));
  }`;

/** Checks how both lines begin that TELL prints. */
async function told(child: Peer, start: string): Promise<void> {
  for (let i = 0; i < 2; i++) {
    const line = await child.line();
    assert(line.startsWith(start), line);
  }
}

/** What the user or Deno may not open, and how it is refused. */
const BARRED = [
  ["unreadable", "PermissionDenied EACCES", "allow reading it"],
  ["pipe", "PermissionDenied EACCES", "allow reading and writing it"],
  ["sealed/x", "PermissionDenied EACCES", "allow writing to its directory"],
  ["sealed", "NotCapable none", "it is a directory; name a file in it"],
  ["x.lock", "NotCapable none", "Requires read access"],
  ["pipe", "NotCapable none", "Requires write access"],
];

for (const [name, how, advice] of BARRED) {
  const isUser = how.startsWith("PermissionDenied");
  const who = isUser ? "the user" : "Deno";
  Deno.test(`lock() refuses what ${who} may not open, and says: ${advice}`, {
    ignore: WINDOWS && (isUser || name === "pipe") ||
      isUser && IS_ROOT && !HAS_SETPRIV,
  }, async () => {
    using dir = scene();
    Deno.writeTextFileSync(resolve(dir.path, "unreadable"), "", { mode: 0 });
    // Opening it for reading only would wait for a writer.
    const fifo = ["-m", "444", resolve(dir.path, "pipe")];
    if (!WINDOWS) new Deno.Command("mkfifo", { args: fifo }).outputSync();
    Deno.mkdirSync(resolve(dir.path, "sealed"), { mode: 0o555 });
    const path = resolve(dir.path, name);
    const under = isUser && IS_ROOT ? POWERLESS : [];
    const granted = name === "x.lock" ? [] : [`--allow-read=${dir.path}`];
    const permissions = isUser ? undefined : granted;
    await using child = script(TELL, [path], permissions, { under });
    await told(child, `${how} Cannot lock ${path}: ${advice}`);
  });
}

Deno.test("lock() and tryLock() tell a full disk", MOUNTS, async () => {
  using dir = scene();
  const under = onTmpfs("nr_inodes=1", dir.path);
  await using child = script(TELL, [dir.file], undefined, { under });
  await told(child, `Error ENOSPC Cannot lock ${dir.file}: No space`);
});

Deno.test("lock() and tryLock() tell too many open files", UNIX, async () => {
  using dir = scene();
  const code = `
    const files = [];
    try {
      for (;;) files.push(Deno.openSync(args[1]));
    } catch {}
    ${TELL}
    for (const file of files) file.close();
    (await lock(args[0]))();
    console.log("locked");`;
  const under = ["sh", "-c", 'ulimit -n 200; exec "$@"', "sh"];
  await using child = script(code, [dir.file, dir.path], undefined, { under });
  await told(child, `Error EMFILE Cannot lock ${dir.file}: Too many`);
  assertEquals(await child.line(), "locked");
});

Deno.test(
  "lock() with a signal polls where a worker would find too few open files",
  UNIX,
  async () => {
    using dir = scene();
    const code = `
    const files = [];
    try {
      for (;;) files.push(Deno.openSync(args[0]));
    } catch {}
    for (const file of files.slice(-6)) file.close();
    const options = { signal: AbortSignal.timeout(600) };
    await lock(args[0], options).catch(({ name }) => console.log(name));`;
    using _holder = theirs(dir.file);
    const under = ["sh", "-c", 'ulimit -n 100; exec "$@"', "sh"];
    await using child = script(code, [dir.file], undefined, { under });
    assertEquals(await child.line(), "TimeoutError");
  },
);

/** A command under which flock(2) fails with `error` at those times. */
function withoutLocks(dir: string, error: string, times: string): string[] {
  return ["strace", "-f", "-qq", "-o", resolve(dir, "trace")]
    .concat("-e", "trace=flock")
    .concat("-e", `inject=flock:error=${error}:when=${times}`);
}

const CODES = [["EOPNOTSUPP", "Error ENOTSUP"], ["EINVAL", "TypeError EINVAL"]];
for (const [error, how] of CODES) {
  Deno.test(`lock() tells missing locks, by ${error}`, STRACE, async () => {
    using dir = scene();
    const then = `${TELL} console.log(Deno.pid); await heard();`;
    const under = withoutLocks(dir.path, error, "1+");
    await using child = script(then, [dir.file], undefined, { under });
    await told(child, `${how} Cannot lock ${dir.file}: its file sys`);
    const pid = Number(await child.line()); // not that of strace
    assertEquals(openFiles(pid).includes(dir.file), false);
  });
}

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

Deno.test("lock() of a file that seems to be another one each time says that it waits, and can be given up", async () => {
  using dir = scene();
  let calls = 0;
  {
    using _ = fakeStat(() => ({ ino: Math.random() }));
    const options = { signal: AbortSignal.timeout(50), onWait: () => calls++ };
    const error = await lock(dir.file, options).catch((error) => error);
    assertEquals(error.name, "TimeoutError");
    assertEquals(await tryLock(dir.file), null);
  }
  assertEquals(calls, 1);
  (await tryLock(dir.file))!();
});

// tryLock()

Deno.test("tryLock() returns null where this process holds the lock or waits for it, though it is free", async () => {
  using dir = scene();
  const release = await tryLock(dir.file);
  assertEquals(await tryLock(dir.file), null);
  release!();
  using holder = theirs(dir.file);
  const waiter = await waiting(dir.file, { signal: endless() });
  holder.close();
  assertEquals(await tryLock(dir.file), null);
  (await soon(waiter.lock))();
  (await tryLock(dir.file))!();
});

// The release

Deno.test("Release releases once, by a call or by using, and leaves another's lock", async () => {
  using dir = scene();
  const first = await lock(dir.file);
  const next = lock(dir.file);
  assertEquals(first(), undefined);
  const second = await next;
  first();
  first[Symbol.dispose]();
  assertEquals(isFree(dir.file), false);
  {
    using _second = second;
  }
  assertEquals(isFree(dir.file), true);
  second();
});

Deno.test("Release releases where unlocking fails", STRACE, async () => {
  using dir = scene();
  const code = `
    const release = await lock(args[0]);
    release();
    console.log("released");
    await heard();`;
  const under = withoutLocks(dir.path, "EIO", "2+");
  await using child = script(code, [dir.file], undefined, { under });
  assertEquals(await child.line(), "released");
  assertEquals(isFree(dir.file), true);
});
