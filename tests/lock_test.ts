import { assert } from "@std/assert/assert";
import { assertEquals } from "@std/assert/equals";
import { assertRejects } from "@std/assert/rejects";
import { delay } from "@std/async/delay";
import { resolve } from "@std/path/resolve";
import { lock, type LockOptions, type Release, tryLock } from "../lock.ts";
import {
  blocked,
  CAN_LINK,
  CAN_MOUNT,
  countWaits,
  exists,
  flock,
  has,
  HAS_PROC,
  HAS_STRACE,
  isFree,
  onTmpfs,
  openFileAt,
  openFiles,
  Peer,
  replace,
  scene,
  script,
  soon,
  stranger,
  threads,
  until,
  WINDOWS,
} from "./support.ts";

const HAS_FLOCK = has("flock");
const HAS_PYTHON = has("python3");

/** A lock file that a stranger holds, until it is let go or killed. */
async function taken(): Promise<
  { path: string; holder: Peer } & AsyncDisposable
> {
  const stack = new AsyncDisposableStack();
  const dir = stack.use(scene());
  const path = resolve(dir.path, "x.lock");
  const holder = stack.use(stranger(path));
  await holder.line();
  return { path, holder, [Symbol.asyncDispose]: () => stack.disposeAsync() };
}

/** A wait that is under way, and how often `onWait` was called. */
async function waiting(
  path: string,
  options: LockOptions = {},
): Promise<{ lock: Promise<Release>; calls: () => number }> {
  const { promise: told, resolve: tell } = Promise.withResolvers<void>();
  let calls = 0;
  const onWait = () => {
    calls++;
    tell();
  };
  const waiter = lock(path, { ...options, onWait });
  waiter.catch(() => {}); // it is for the test to await
  await soon(told);
  if (!options.signal && HAS_PROC) await until(() => blocked(Deno.pid) > 0);
  return { lock: waiter, calls: () => calls };
}

/** A signal that nobody aborts. */
const endless = () => new AbortController().signal;

/** A clock that only the pauses of this process move, and what they are. */
function fakeTime(
  onPause = () => {},
): { now: number; pauses: number[] } & Disposable {
  const stack = new DisposableStack();
  const { setTimeout } = globalThis;
  const pause = (handler: () => void, ms: number) => {
    time.pauses.push(ms);
    time.now += ms;
    onPause();
    return setTimeout(handler);
  };
  stack.use(replace(performance, "now", () => time.now));
  stack.use(replace(globalThis, "setTimeout", pause as typeof setTimeout));
  const dispose = () => stack.dispose();
  const time = {
    now: 1e6,
    pauses: [] as number[],
    [Symbol.dispose]: dispose,
  };
  return time;
}

// The file

Deno.test("lock() creates the file, and leaves it there", async () => {
  using dir = scene();
  const path = resolve(dir.path, "x.lock");
  const release = await lock(path);
  assertEquals(isFree(path), false);
  release();
  assertEquals(isFree(path), true);
  assertEquals(Deno.statSync(path).size, 0);
});

Deno.test({
  name: "lock() leaves the mode of the file to the umask",
  ignore: WINDOWS,
  async fn() {
    using dir = scene();
    await using child = script(
      `Deno.umask(0o002); (await lock(args[0]))(); console.log("done");`,
      [resolve(dir.path, "x.lock")],
    );
    await child.line();
    const { mode } = Deno.statSync(resolve(dir.path, "x.lock"));
    assertEquals(mode! & 0o777, 0o664);
  },
});

Deno.test("lock() takes a file URL with percent-escapes", async () => {
  using dir = scene();
  const url = new URL(`file://${dir.path}/a%20%C3%A9%25.lock`);
  using _lock = await lock(url);
  assertEquals(isFree(resolve(dir.path, "a é%.lock")), false);
});

Deno.test("lock() refuses a URL that is not a file", async () => {
  await assertRejects(() => lock(new URL("https://example.com/x")), TypeError);
  await assertRejects(
    () => tryLock(new URL("https://example.com/x")),
    TypeError,
  );
});

Deno.test("lock() rejects with the signal's reason if it is aborted already, and touches nothing", async () => {
  using dir = scene();
  const reason = { any: "value" };
  const path = resolve(dir.path, "x.lock");
  const thrown = await lock(path, { signal: AbortSignal.abort(reason) })
    .catch((error) => error);
  assert(thrown === reason);
  assertEquals(exists(path), false);
});

Deno.test("lock() takes a relative path from the working directory of the call", async () => {
  using dir = scene();
  await using child = script(
    `Deno.chdir(args[0]);
     const release = await lock("x.lock");
     const waiter = lock("./x.lock");
     Deno.mkdirSync("other");
     Deno.chdir("other");
     release();
     await waiter;
     console.log([...Deno.readDirSync(".")].length);
     await heard();`,
    [dir.path],
  );
  assertEquals(await child.line(), "0");
  assertEquals(isFree(resolve(dir.path, "x.lock")), false);
});

// onWait

Deno.test("lock() does not call onWait for a lock that is free", async () => {
  using dir = scene();
  let calls = 0;
  (await lock(resolve(dir.path, "x"), { onWait: () => calls++ }))();
  assertEquals(calls, 0);
});

Deno.test("lock() calls onWait once, after it has returned its promise", async () => {
  await using it = await taken();
  const calls: string[] = [];
  const first = lock(it.path, { onWait: () => calls.push("first") });
  const second = lock(it.path, { onWait: () => calls.push("second") });
  assertEquals(calls, []); // behind another process, and behind this one
  await until(() => calls.length > 0);
  assertEquals(calls, ["first", "second"]);
  await it.holder.go();
  (await soon(first))();
  (await soon(second))();
  assertEquals(calls.length, 2);
});

Deno.test("lock() rejects with what onWait throws, and lets the next one in", async () => {
  using dir = scene();
  const path = resolve(dir.path, "x");
  const release = await lock(path);
  const onWait = () => {
    throw new RangeError("from onWait");
  };
  await assertRejects(() => lock(path, { onWait }), RangeError, "from onWait");
  const next = lock(path);
  release();
  (await soon(next))();
});

Deno.test("lock() whose onWait throws does not wait in the operating system", {
  ignore: !HAS_PROC,
}, async () => {
  await using it = await taken();
  const onWait = () => {
    throw new RangeError("from onWait");
  };
  await assertRejects(() => lock(it.path, { onWait }), RangeError);
  const { promise: told, resolve: tell } = Promise.withResolvers<void>();
  const controller = new AbortController();
  const next = lock(it.path, { signal: controller.signal, onWait: tell });
  await soon(told);
  await until(() => blocked(Deno.pid) === 0);
  controller.abort("enough");
  assertEquals(await next.catch((reason) => reason), "enough");
});

Deno.test("lock() whose onWait gives up, asks again and throws leaves one wait for the path", async () => {
  await using it = await taken();
  using waits = countWaits();
  const controller = new AbortController();
  let inner: Promise<Release> | undefined;
  const outer = lock(it.path, {
    signal: controller.signal,
    onWait() {
      controller.abort("in onWait");
      inner = lock(it.path);
      throw new Error("too late to count");
    },
  });
  assertEquals(await outer.catch((reason) => reason), "in onWait");
  const next = lock(it.path);
  await delay(0);
  assertEquals(waits.count, 1);
  await it.holder.go();
  assert(inner);
  const release = await soon(inner);
  assertEquals(await tryLock(it.path), null);
  release();
  (await soon(next))();
});

// The signal

Deno.test("lock() rejects if its signal is aborted before it settles, though the lock is free", async () => {
  using dir = scene();
  const path = resolve(dir.path, "x");
  const controller = new AbortController();
  const abandoned = lock(path, controller);
  controller.abort("reason");
  assertEquals(await abandoned.catch((reason) => reason), "reason");
  (await tryLock(path))!();
});

Deno.test(
  "lock() that is abandoned leaves no open file, no thread, and no lock held by nobody",
  {
    sanitizeOps: true,
    sanitizeResources: true,
    ignore: !HAS_PROC,
  },
  async () => {
    await using it = await taken();
    const before = { threads: threads(), files: openFiles() };
    for (let i = 0; i < 20; i++) {
      const controller = new AbortController();
      const waiter = await waiting(it.path, { signal: controller.signal });
      assertEquals(openFiles().includes(it.path), true);
      controller.abort(i);
      assertEquals(await waiter.lock.catch((reason) => reason), i);
      assertEquals(openFiles(), before.files);
    }
    assert(threads() <= before.threads + 1, `${threads()} threads`);
    await it.holder.go();
    await it.holder.ended();
    assertEquals(isFree(it.path), true);
  },
);

Deno.test(
  "lock() that is abandoned lets the script end at once, although the other process keeps the lock",
  async () => {
    await using it = await taken();
    await using child = script(
      `await lock(args[0], { signal: AbortSignal.timeout(100) })
       .catch((error) => console.log(error.name));`,
      [it.path],
    );
    assertEquals(await child.line(), "TimeoutError");
    assertEquals((await child.ended()).code, 0);
    assertEquals(isFree(it.path), false);
  },
);

Deno.test(
  "lock() that has settled leaves nothing on the signal: a long timeout does not keep the script alive",
  async () => {
    await using it = await taken();
    await using child = script(
      `const signal = AbortSignal.timeout(600_000);
     (await lock(args[0] + "2", { signal }))();
     const onWait = () => console.log("waiting");
     (await lock(args[0], { signal, onWait }))();
     const first = await lock(args[0]);
     const second = lock(args[0], { signal });
     first();
     (await second)();`,
      [it.path],
    );
    await child.line();
    await it.holder.go();
    assertEquals((await child.ended()).code, 0);
  },
);

Deno.test("lock() leaves no listener on a signal, however the wait ends", async () => {
  using dir = scene();
  const path = resolve(dir.path, "x");
  const { signal } = new AbortController();
  let listeners = 0;
  const { addEventListener, removeEventListener } = signal;
  signal.addEventListener = (...args: unknown[]) => {
    listeners++;
    addEventListener.apply(signal, args as never);
  };
  signal.removeEventListener = (...args: unknown[]) => {
    listeners--;
    removeEventListener.apply(signal, args as never);
  };
  const release = await lock(path, { signal });
  const granted = lock(path, { signal });
  const thrown = lock(path, {
    signal,
    onWait() {
      throw new RangeError("from onWait");
    },
  });
  await assertRejects(() => thrown, RangeError);
  release();
  (await granted)();
  assertEquals(listeners, 0);
});

Deno.test("lock() with a signal asks after a fortieth of the time waited, 1 ms at least, 100 ms at most", async () => {
  using dir = scene();
  const path = resolve(dir.path, "x");
  using holder = Deno.openSync(path, { write: true, create: true });
  holder.lockSync(true);
  const controller = new AbortController();
  using time = fakeTime(() => {
    if (time.pauses.at(-1) === 100) controller.abort();
  });
  await assertRejects(() => soon(lock(path, controller)), DOMException);
  let waited = 0;
  for (const pause of time.pauses) {
    assertEquals(pause, Math.trunc(Math.min(Math.max(waited / 40, 1), 100)));
    waited += pause;
  }
  assertEquals([time.pauses[0], time.pauses.at(-1)], [1, 100]);
});

// The queue of one thread

Deno.test("lock() calls of one process get the lock in the order in which they asked", async () => {
  using dir = scene();
  const path = resolve(dir.path, "x");
  const release = await lock(path);
  const order: number[] = [];
  const waiters = Array.from({ length: 50 }, async (_, i) => {
    const name = [path, new URL(`file://${path}`), `${dir.path}/./x`][i % 3];
    const signal = i % 4 ? undefined : AbortSignal.timeout(60_000);
    using _lock = await lock(name, { signal });
    order.push(i);
    await delay(0);
  });
  release();
  await soon(Promise.all(waiters));
  assertEquals(order, Array.from({ length: 50 }, (_, i) => i));
});

Deno.test("lock() that is abandoned leaves the queue at once, the others keep their order", async () => {
  using dir = scene();
  const path = resolve(dir.path, "x");
  const release = await lock(path);
  const order: number[] = [];
  const controllers = Array.from({ length: 9 }, () => new AbortController());
  const waiters = controllers.map(({ signal }, i) =>
    lock(path, { signal }).then((release) => {
      order.push(i);
      release();
    })
  );
  for (const i of [0, 4, 8]) {
    controllers[i].abort(`reason ${i}`);
    assertEquals(await waiters[i].catch((reason) => reason), `reason ${i}`);
  }
  assertEquals(order, []);
  release();
  await soon(Promise.allSettled(waiters));
  assertEquals(order, [1, 2, 3, 5, 6, 7]);
});

Deno.test("lock() that is abandoned just as its turn comes hands it on", async () => {
  using dir = scene();
  const path = resolve(dir.path, "x");
  for (const abortFirst of [true, false]) {
    const release = await lock(path);
    const controller = new AbortController();
    const abandoned = lock(path, controller);
    const next = lock(path);
    if (abortFirst) controller.abort();
    release();
    controller.abort();
    await assertRejects(() => abandoned, DOMException, "aborted");
    (await soon(next))();
    (await tryLock(path))!();
  }
});

Deno.test(
  "lock() called a thousand times, while another process holds it, adds one open file and a handful of threads",
  {
    ignore: !HAS_PROC,
  },
  async () => {
    await using it = await taken();
    const before = threads();
    const order: number[] = [];
    const waiters = Array.from({ length: 1000 }, async (_, i) => {
      using _lock = await lock(it.path);
      order.push(i);
    });
    await until(() => blocked(Deno.pid) > 0);
    const added = threads() - before;
    // Deno holds a second descriptor of the same open file while one waits.
    const descriptors = openFiles().filter((path) => path === it.path).length;
    await it.holder.go();
    await soon(Promise.all(waiters));
    assertEquals(order, Array.from({ length: 1000 }, (_, i) => i));
    assertEquals(openFiles().includes(it.path), false);
    assert(added <= 5, `${added} threads`);
    assert(descriptors <= 2, `${descriptors} descriptors`);
  },
);

Deno.test("lock() that is abandoned ten thousand times by one signal leaves the queue to the rest", async () => {
  using dir = scene();
  const path = resolve(dir.path, "x");
  const release = await lock(path);
  const controller = new AbortController();
  let abandoned = 0;
  const waiters = Array.from(
    { length: 10_000 },
    () => lock(path, controller).catch(() => abandoned++),
  );
  const next = lock(path);
  controller.abort();
  await soon(Promise.all(waiters));
  assertEquals(abandoned, 10_000);
  release();
  (await soon(next))();
});

// Giving way

/** Locks for another program, if the lock is free. */
function theirs(path: string): Deno.FsFile {
  const file = Deno.openSync(path, { write: true });
  assertEquals(file.tryLockSync(true), true);
  return file;
}

for (const kind of ["queued", "asking anew", "locking other files, too,"]) {
  Deno.test(`lock() of a caller ${kind} leaves the lock free for others when this process has had it for 100 ms on end`, async () => {
    using dir = scene();
    using time = fakeTime();
    const path = resolve(dir.path, "x");
    for (let i = 0; i < 20; i++) {
      const release = await tryLock(path); // which gives no way
      time.now += 5;
      release!();
      time.now += 0.5;
      if (kind.includes("other")) (await tryLock(`${path}${i}`))!();
    }
    let waits = 0;
    const onWait = () => waits++;
    const release = (await tryLock(path))!;
    const queued = kind === "queued" ? lock(path) : undefined;
    release();
    const next = queued ?? lock(path, { onWait });
    theirs(path).close();
    (await soon(next))();
    assertEquals(time.pauses.length, 1);
    const [pause] = time.pauses;
    assert(pause >= 5 && pause <= 15, `${pause} ms`);
    assertEquals(waits, 0); // nobody else held it
  });
}

Deno.test("lock() leaves the lock free for others though callers compute between their turns", async () => {
  using dir = scene();
  using time = fakeTime();
  const path = resolve(dir.path, "x");
  const first = await lock(path);
  const waiters = [lock(path), lock(path)];
  time.now += 60;
  first();
  time.now += 2; // the next one has the lock by now, but does not know it yet
  const second = await waiters[0];
  time.now += 60;
  second();
  theirs(path).close();
  (await soon(waiters[1]))();
});

Deno.test("lock() keeps the lock in the process while it has not had it for long", async () => {
  using dir = scene();
  using time = fakeTime();
  const path = resolve(dir.path, "x");
  const release = await lock(path);
  const next = lock(path);
  time.now += 99;
  release();
  assertEquals(isFree(path), false);
  (await next)();
  time.now += 1.1; // others had that long
  (await lock(path))();
  assertEquals(time.pauses, []);
});

Deno.test("lock() calls onWait where another one takes the lock that it gave way to", async () => {
  using dir = scene();
  const path = resolve(dir.path, "x");
  const { promise: told, resolve: onWait } = Promise.withResolvers<void>();
  let again: Promise<Release>;
  let other: Deno.FsFile;
  {
    using time = fakeTime();
    const release = await lock(path);
    time.now += 100;
    release();
    again = lock(path, { onWait });
    other = theirs(path);
    await soon(told);
  }
  other.close();
  (await soon(again))();
});

Deno.test(
  "lock() that is abandoned while it gives way leaves the path free at once",
  { sanitizeOps: true, sanitizeResources: true },
  async () => {
    using dir = scene();
    using time = fakeTime();
    const path = resolve(dir.path, "x");
    const release = await lock(path);
    time.now += 100;
    release();
    const controller = new AbortController();
    const again = lock(path, controller);
    controller.abort("reason");
    (await tryLock(path))!();
    assertEquals(
      await again.catch((reason) => reason),
      "reason",
    );
  },
);

for (
  const [callers, code] of [
    ["four callers by turns", "for (let i = 0; i < 4; i++) again();"],
    ["one caller in a loop", "again();"],
  ]
) {
  Deno.test(`lock() lets in a program that tries every 100 ms, beside ${callers} of one process`, async () => {
    using dir = scene();
    const path = resolve(dir.path, "x");
    await using busy = script(
      `console.log("started");
       const again = async () => {
         for (;;) {
           using _lock = await lock(args[0]);
           await new Promise((resolve) => setTimeout(resolve, 5));
         }
       };
       ${code}`,
      [path],
    );
    await busy.line();
    await until(() => exists(path));
    try {
      for (let i = 0; i < 5; i++) { // more than luck
        await soon((async () => {
          using file = Deno.openSync(path, { write: true });
          while (!file.tryLockSync(true)) await delay(100);
        })());
      }
    } finally {
      busy.kill();
    }
  });
}

// Waiting for another process

Deno.test(
  "lock() waits in the operating system, but not if all waiters have a signal",
  {
    ignore: !HAS_PROC,
  },
  async () => {
    await using it = await taken();
    const controller = new AbortController();
    const polling = await waiting(it.path, { signal: controller.signal });
    await until(() => blocked(Deno.pid) === 0);
    const blocking = await waiting(it.path); // joins, and the wait changes
    await until(() => blocked(Deno.pid) === 1);
    controller.abort("enough");
    assertEquals(await polling.lock.catch((reason) => reason), "enough");
    await until(() => blocked(Deno.pid) === 1);
    await it.holder.go();
    (await soon(blocking.lock))();
  },
);

Deno.test(
  "lock() with a signal gets the lock from the system's queue in its turn, if another waits there",
  {
    ignore: !HAS_PROC,
  },
  async () => {
    await using it = await taken();
    const first = await waiting(it.path, { signal: endless() });
    const second = await waiting(it.path);
    await until(() => blocked(Deno.pid) === 1);
    await it.holder.go();
    const release = await soon(first.lock);
    assertEquals(isFree(it.path), false);
    release();
    (await soon(second.lock))();
  },
);

Deno.test("lock() looks again at once when somebody joins, and when a place in the operating system is free", async () => {
  using dir = scene();
  const paths = Array.from({ length: 3 }, (_, i) => resolve(dir.path, `${i}`));
  const holders = paths.map((path) => {
    const file = Deno.openSync(path, { write: true, create: true });
    file.lockSync(true);
    return file;
  });
  using waits = countWaits();
  const { setTimeout } = globalThis;
  const turn = () => new Promise((resolve) => setTimeout(resolve));
  const never = (() => 0) as unknown as typeof setTimeout;
  using _ = replace(globalThis, "setTimeout", never); // so that no pause ends
  const polling = lock(paths[0], { signal: endless() });
  await turn();
  const waiters = [lock(paths[0])];
  await turn();
  assertEquals(waits.count, 1);
  waiters.push(lock(paths[1]), lock(paths[2]));
  await turn();
  assertEquals(waits.count, 2);
  holders[0].close();
  (await soon(polling))();
  (await soon(waiters[0]))();
  await turn();
  assertEquals(waits.count, 3);
  for (const holder of holders.slice(1)) holder.close();
  for (const waiter of waiters.slice(1)) (await soon(waiter))();
});

Deno.test("lock() of many files at once leaves the process's other file operations alone", async () => {
  using dir = scene();
  const paths = Array.from({ length: 40 }, (_, i) => resolve(dir.path, `${i}`));
  const releases = await Promise.all(paths.map((path) => lock(path)));
  // In a process of its own: not every runtime has the pool of `deno run`.
  await using child = script(
    `const waiters = [];
     await Promise.all(args.map((path) => new Promise((onWait) =>
       waiters.push(lock(path, { onWait }))
     )));
     await new Promise((resolve) => setTimeout(resolve)); // all of them wait now
     console.log((await Deno.stat(args[0])).size);
     for (const waiter of waiters) (await waiter)();
     console.log("done");`,
    paths,
  );
  assertEquals(await child.line(), "0");
  // A Windows machine with one core has a pool of four threads.
  if (HAS_PROC) await until(() => blocked(child.pid) === 2);
  for (const release of releases) release();
  assertEquals(await child.line(), "done");
});

Deno.test(
  "lock() that began to poll moves to the operating system when a place becomes free there",
  {
    ignore: !HAS_PROC,
  },
  async () => {
    using dir = scene();
    const paths = Array.from(
      { length: 4 },
      (_, i) => resolve(dir.path, `${i}`),
    );
    const holders = paths.map((path) => {
      const file = Deno.openSync(path, { write: true, create: true });
      file.lockSync(true);
      return file;
    });
    using waits = countWaits();
    const waiters = [];
    for (const path of paths) waiters.push((await waiting(path)).lock);
    await delay(0); // a wait begins right after its onWait
    assertEquals(waits.count, 2);
    for (const [i, left] of [[0, 2], [1, 2], [2, 1], [3, 0]]) {
      holders[i].close();
      const release = await soon(waiters[i]);
      await until(() => blocked(Deno.pid) === left);
      release();
    }
  },
);

// The right file

for (const kind of ["without a signal", "with a signal"]) {
  const options = kind === "with a signal" ? { signal: endless() } : {};

  Deno.test(
    `lock() ${kind} whose file is replaced during the wait waits for the new file's holder too`,
    async () => {
      await using it = await taken();
      const waiter = await waiting(it.path, options);
      Deno.renameSync(it.path, `${it.path}.old`);
      await using second = stranger(
        it.path,
        `Deno.writeTextFileSync(args[0] + ".done", "");`,
      );
      await second.line();
      const granted = waiter.lock.then((release) => {
        release();
        return exists(`${it.path}.done`);
      });
      await it.holder.go();
      await it.holder.ended();
      if (options.signal) await until(() => isFree(`${it.path}.old`));
      if (HAS_PROC) await until(() => openFiles().includes(it.path));
      await second.go();
      assertEquals(await soon(granted), true);
      assertEquals(waiter.calls(), 1);
      assertEquals(isFree(it.path), true);
    },
  );

  Deno.test(`lock() ${kind} whose file is deleted during the wait gets a new file`, async () => {
    await using it = await taken();
    const waiter = await waiting(it.path, options);
    Deno.removeSync(it.path);
    await it.holder.go();
    const release = await soon(waiter.lock);
    assertEquals(isFree(it.path), false);
    release();
  });

  Deno.test(`lock() ${kind} whose directory is deleted during the wait says so`, async () => {
    await using it = await taken();
    const waiter = await waiting(it.path, options);
    Deno.removeSync(resolve(it.path, ".."), { recursive: true });
    await it.holder.go();
    await assertRejects(
      () => soon(waiter.lock),
      Deno.errors.NotFound,
      "its directory is missing",
    );
    Deno.mkdirSync(resolve(it.path, ".."));
  });
}

Deno.test("lock() takes a file that is written to at that moment", async () => {
  using dir = scene();
  const path = resolve(dir.path, "x");
  const { statSync } = Deno;
  using _ = replace(
    Deno,
    "statSync",
    (path) => ({ ...statSync(path), mtime: new Date(1) }),
  );
  (await tryLock(path))!();
});

for (
  const [kind, theirs] of [
    ["by the links of the deleted one", undefined],
    ["by its last write, where links tell nothing", { nlink: 1 }],
  ] as const
) {
  Deno.test(`lock() tells a new file without number and birth time of its own ${kind}`, async () => {
    using dir = scene();
    const path = resolve(dir.path, "x");
    const holder = Deno.openSync(path, { write: true, create: true });
    holder.lockSync(true);
    const { mtime } = holder.statSync();
    const alike = { ino: null, birthtime: new Date(0), ...theirs };
    const { statSync } = Deno;
    const ofFile = Deno.FsFile.prototype.statSync;
    using _path = replace(
      Deno,
      "statSync",
      (path) => ({ ...statSync(path), ...alike }),
    );
    using _file = replace(
      Deno.FsFile.prototype,
      "statSync",
      function (this: Deno.FsFile) {
        return { ...ofFile.call(this), ...alike };
      },
    );
    const waiter = await waiting(path, { signal: endless() });
    Deno.removeSync(path);
    Deno.writeTextFileSync(path, "");
    const write = theirs ? new Date(1) : mtime!; // the same, or another
    Deno.utimeSync(path, write, write);
    holder.close();
    using _lock = await soon(waiter.lock);
    assertEquals(isFree(path), false);
  });
}

Deno.test("lock() whose file is deleted while it is held still excludes its own process, and releases", async () => {
  using dir = scene();
  const path = resolve(dir.path, "x");
  const release = await lock(path);
  Deno.removeSync(path);
  assertEquals(await tryLock(path), null);
  const next = lock(path);
  release();
  const release2 = await soon(next);
  assertEquals(isFree(path), false);
  release2();
});

Deno.test(
  "lock() keeps processes apart that lock and delete the file at random",
  {
    ignore: WINDOWS, // where a file that is being deleted cannot be opened
  },
  async () => {
    using dir = scene();
    const path = resolve(dir.path, "x");
    // Deleting under a holder lets the next one in, so only holders delete, last.
    const code = `
    for (let i = 0; i < 100; i++) {
      const release = await lock(args[0], i % 2
        ? { signal: AbortSignal.timeout(60_000) } : {});
      Deno.writeTextFileSync(args[0] + ".in", "", { createNew: true });
      Deno.removeSync(args[0] + ".in");
      if (i % 3 === 0) Deno.removeSync(args[0]);
      release();
    }
    console.log("done");`;
    await using a = script(code, [path]);
    await using b = script(code, [path]);
    await using c = script(code, [path]);
    for (const peer of [a, b, c]) assertEquals(await peer.line(), "done");
  },
);

// Crashes

for (
  const [how, code] of [
    ["is killed", "await heard();"],
    ["exits", "await heard(); Deno.exit(3);"],
    ["throws", `await heard(); throw "an uncaught error, as the test wants";`],
  ]
) {
  Deno.test(`lock() of a process that ${how} is freed`, async () => {
    using dir = scene();
    const path = resolve(dir.path, "x");
    await using holder = script(
      `await lock(args[0]); console.log("held"); ${code}`,
      [path],
    );
    await holder.line();
    const waiter = await waiting(path);
    if (how === "is killed") holder.kill("SIGKILL");
    else await holder.go();
    (await soon(waiter.lock))();
  });
}

Deno.test("lock() is not inherited by a child process", async () => {
  using dir = scene();
  const path = resolve(dir.path, "x");
  const release = await lock(path);
  await using child = script(`console.log("started"); await heard();`);
  await child.line();
  release();
  assertEquals(isFree(path), true);
});

Deno.test("lock() of a process that is killed is not kept by its child", {
  ignore: WINDOWS, // where it is killed with its parent
}, async () => {
  using dir = scene();
  const path = resolve(dir.path, "x");
  await using holder = script(
    `await lock(args[0]);
     const sleep = ["eval", "await new Promise((go) => setTimeout(go, 60000))"];
     const child = new Deno.Command(Deno.execPath(), { args: sleep }).spawn();
     console.log(child.pid);
     await heard();`,
    [path],
  );
  const child = Number(await holder.line());
  holder.kill("SIGKILL");
  await holder.ended();
  assertEquals(isFree(path), true);
  Deno.kill(child, "SIGKILL");
});

// Strangers

Deno.test("lock() and flock(1) exclude each other", {
  ignore: !HAS_FLOCK,
}, async () => {
  using dir = scene();
  const path = resolve(dir.path, "x");
  await using holder = flock(path);
  await holder.line();
  assertEquals(await tryLock(path), null);
  const waiter = await waiting(path);
  await holder.go();
  const release = await soon(waiter.lock);
  const attempt = () =>
    new Deno.Command("flock", { args: ["-n", path, "true"] }).output();
  assertEquals((await attempt()).success, false);
  release();
  assertEquals((await attempt()).success, true);
});

Deno.test("lock() and Python's fcntl.flock exclude each other", {
  ignore: !HAS_PYTHON || WINDOWS,
}, async () => {
  using dir = scene();
  const path = resolve(dir.path, "x");
  await using python = new Peer("python3", [
    "-c",
    `import fcntl, sys
file = open(sys.argv[1], "a")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.readline()
fcntl.flock(file, fcntl.LOCK_UN)
sys.stdin.readline()
try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    print("free", flush=True)
except BlockingIOError:
    print("taken", flush=True)
`,
    path,
  ]);
  await python.line();
  assertEquals(await tryLock(path), null);
  await python.go();
  using _lock = await soon(lock(path));
  await python.go();
  assertEquals(await python.line(), "taken");
});

Deno.test(
  "lock(): six processes of three kinds add up to six hundred on one counter",
  {
    ignore: !HAS_FLOCK || !HAS_PYTHON || WINDOWS,
  },
  async () => {
    using dir = scene();
    const path = resolve(dir.path, "x");
    const counter = resolve(dir.path, "counter");
    Deno.writeTextFileSync(counter, "0");
    const deno = (options: string) => `
    const add = () => Deno.writeTextFileSync(args[1],
      String(Number(Deno.readTextFileSync(args[1])) + 1));
    for (let i = 0; i < 100; i++) {
      using _lock = await lock(args[0], ${options});
      add();
    }`;
    const shell = `i=0; while [ $i -lt 100 ]; do i=$((i+1))
    flock "$0" sh -c 'read n < "$0"; echo $((n+1)) > "$0"' "$1"; done`;
    const python = `import fcntl, sys
for i in range(100):
    with open(sys.argv[1], "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        n = int(open(sys.argv[2]).read())
        with open(sys.argv[2], "w") as out: out.write(str(n + 1))
`;
    const args = [path, counter];
    await using stack = new AsyncDisposableStack();
    const peers = [
      script(deno("{}"), args),
      script(deno("{ signal: AbortSignal.timeout(60_000) }"), args),
      new Peer("sh", ["-c", shell, ...args]),
      new Peer("sh", ["-c", shell, ...args]),
      new Peer("python3", ["-c", python, ...args]),
      new Peer("python3", ["-c", python, ...args]),
    ];
    for (const peer of peers) stack.use(peer);
    for (const peer of peers) assertEquals((await peer.ended()).code, 0);
    assertEquals(Number(Deno.readTextFileSync(counter)), 600);
  },
);

// Never written

for (const [kind, ignore] of [["a file", false], ["a link", !CAN_LINK]]) {
  Deno.test(
    `lock() changes neither content nor length of ${kind} at the path`,
    {
      ignore: ignore as boolean,
    },
    async () => {
      using dir = scene();
      const data = resolve(dir.path, "data");
      const link = resolve(dir.path, "link");
      Deno.writeTextFileSync(data, "precious");
      if (kind === "a link") Deno.symlinkSync(data, link);
      const path = kind === "a link" ? link : data;
      const { mtime } = Deno.statSync(data);
      const release = await lock(path);
      const next = lock(path, { signal: AbortSignal.timeout(60_000) });
      release();
      (await next)();
      (await tryLock(path))!();
      assertEquals(Deno.readTextFileSync(data), "precious");
      assertEquals(Deno.statSync(data).mtime, mtime);
      assertEquals(Deno.lstatSync(path).isSymlink, kind === "a link");
    },
  );
}

Deno.test("lock() opens the file for reading and writing", {
  ignore: !HAS_PROC,
}, async () => {
  using dir = scene();
  const path = resolve(dir.path, "x");
  using _lock = await lock(path);
  const fd = [...Deno.readDirSync("/proc/self/fd")].find(({ name }) =>
    openFileAt(name) === path
  )!;
  const info = Deno.readTextFileSync(`/proc/self/fdinfo/${fd.name}`);
  const flags = parseInt(/^flags:\s+(\d+)$/m.exec(info)![1], 8);
  assertEquals(flags & 0o3, 2); // O_RDWR
});

Deno.test("lock(): a file that may only be read is locked all the same", async () => {
  using dir = scene();
  const path = resolve(dir.path, "x");
  Deno.writeTextFileSync(path, "");
  await using child = script(
    `const release = await lock(args[0]);
     console.log("held");
     await heard();
     release();
     console.log("released");`,
    [path],
    [`--allow-read=${dir.path}`],
  );
  assertEquals(await child.line(), "held");
  assertEquals(isFree(path), false);
  await child.go();
  assertEquals(await child.line(), "released");
  assertEquals(isFree(path), true);
  await child.ended();
});

// Refusals

const { IsADirectory, NotADirectory, NotCapable, NotFound, PermissionDenied } =
  Deno.errors;

/** What stands at the path, and what lock() and tryLock() say of it. */
const REFUSALS: {
  kind: string;
  at: (dir: string) => string;
  Class: new (message: string) => Error;
  code?: string;
  message: string;
  ignore?: boolean;
}[] = [
  {
    kind: "a directory",
    at: (dir) => dir,
    Class: WINDOWS ? Error : IsADirectory,
    code: WINDOWS ? undefined : "EISDIR",
    message: "it is a directory; name a file in it",
  },
  {
    kind: "a file in a missing directory",
    at: (dir) => resolve(dir, "missing", "x"),
    Class: NotFound,
    code: "ENOENT",
    message: "its directory is missing; create it first",
  },
  {
    kind: "a symbolic link into a missing directory",
    at(dir) {
      const link = resolve(dir, "link");
      Deno.symlinkSync(resolve(dir, "missing", "x"), link);
      return link;
    },
    Class: NotFound,
    code: "ENOENT",
    message: "it is a symbolic link into a missing directory",
    ignore: !CAN_LINK,
  },
  {
    kind: "a path below a file",
    at(dir) {
      Deno.writeTextFileSync(resolve(dir, "file"), "");
      return resolve(dir, "file", "x");
    },
    Class: WINDOWS ? Error : NotADirectory,
    code: WINDOWS ? undefined : "ENOTDIR",
    message: "",
  },
  {
    kind: "a name that is too long",
    at: (dir) => resolve(dir, "x".repeat(300)),
    Class: Error,
    code: WINDOWS ? undefined : "ENAMETOOLONG",
    message: WINDOWS ? "" : "File name too long",
  },
  {
    kind: "a path with a NUL",
    at: (dir) => resolve(dir, "a\0b"),
    Class: TypeError,
    message: "no path can contain a NUL",
  },
  {
    kind: "a file that the user may not open",
    at(dir) {
      const path = resolve(dir, "x");
      Deno.writeTextFileSync(path, "", { mode: 0 });
      return path;
    },
    Class: PermissionDenied,
    code: "EACCES",
    message: "allow reading it",
    ignore: WINDOWS || Deno.uid() === 0,
  },
];

for (const { kind, at, Class, code, message, ignore } of REFUSALS) {
  Deno.test(
    `lock() and tryLock() refuse ${kind}, with class, code, path and advice`,
    {
      ignore,
    },
    async () => {
      using dir = scene();
      const path = at(dir.path);
      const before = HAS_PROC ? openFiles() : [];
      for (const acquire of [lock, tryLock]) {
        const error: Error & { code?: string } = await assertRejects(
          () => acquire(path),
          Class,
          `Cannot lock ${path}: ${message}`,
        );
        assert(error.cause instanceof Class);
        assertEquals(error.constructor, error.cause.constructor);
        if (code) assertEquals(error.code, code);
        const other = kind.includes("missing") ? "readable" : "missing";
        assert(!error.message.includes(other), error.message);
      }
      if (HAS_PROC) assertEquals(openFiles(), before);
    },
  );
}

/** Prints what becomes of lock() and tryLock(): a code, and the message. */
const TELL = `
  for (const acquire of [lock, tryLock]) {
    await acquire(args[0]).catch((error) =>
      console.log(error.name, error.code, error.message));
  }`;

Deno.test("lock() and tryLock() on a disk without inodes say that it is full", {
  ignore: !CAN_MOUNT,
}, async () => {
  using dir = scene();
  const path = resolve(dir.path, "x");
  const under = onTmpfs("nr_inodes=1", dir.path);
  await using child = script(TELL, [path], undefined, { under });
  for (const _ of ["lock", "tryLock"]) {
    const line = await child.line();
    assert(line.startsWith(`Error ENOSPC Cannot lock ${path}: No space`), line);
  }
});

Deno.test("lock() and tryLock() with too many open files say so, then lock", {
  ignore: WINDOWS,
}, async () => {
  using dir = scene();
  const path = resolve(dir.path, "x");
  await using child = script(
    `const files = [];
     try {
       for (;;) files.push(Deno.openSync(args[1]));
     } catch {}
     ${TELL}
     for (const file of files) file.close();
     (await lock(args[0]))();
     console.log("locked");`,
    [path, dir.path],
    undefined,
    { under: ["sh", "-c", 'ulimit -n 200; exec "$@"', "sh"] },
  );
  for (const _ of ["lock", "tryLock"]) {
    const line = await child.line();
    assert(line.startsWith(`Error EMFILE Cannot lock ${path}: Too many`), line);
  }
  assertEquals(await child.line(), "locked");
});

for (
  const [kind, permissions] of [
    ["a directory", (dir: string) => [`--allow-read=${dir}`]],
    ["a file", () => []],
  ] as const
) {
  Deno.test(`lock() refuses ${kind} that Deno may not write`, async () => {
    using dir = scene();
    const path = kind === "a directory" ? dir.path : resolve(dir.path, "x");
    await using child = script(TELL, [path], permissions(dir.path));
    const line = await child.line();
    assert(line.startsWith(NotCapable.name), line);
    assert(line.includes(`Cannot lock ${path}: `), line);
  });
}

Deno.test(
  "lock() refuses a pipe that it may not write, without waiting for a writer",
  {
    ignore: !has("mkfifo"),
  },
  async () => {
    using dir = scene();
    const path = resolve(dir.path, "pipe");
    new Deno.Command("mkfifo", { args: [path] }).outputSync();
    await using child = script(TELL, [path], [`--allow-read=${dir.path}`]);
    assert((await child.line()).startsWith("NotCapable"));
  },
);

/** A command under which flock(2) fails with `error` from the `nth` time on. */
function withoutLocks(dir: string, error: string, nth: number): string[] {
  return ["strace", "-f", "-qq", "-o", resolve(dir, "trace")]
    .concat("-e", "trace=flock")
    .concat("-e", `inject=flock:error=${error}:when=${nth}+`);
}

Deno.test(
  "lock() and tryLock() refuse a file system without locks, and leave nothing open",
  {
    ignore: !HAS_STRACE,
  },
  async () => {
    using dir = scene();
    const path = resolve(dir.path, "x");
    await using child = script(
      `${TELL}
     console.log([...Deno.readDirSync("/proc/self/fd")].some(({ name }) => {
       try {
         return Deno.readLinkSync("/proc/self/fd/" + name) === args[0];
       } catch {}
     }));`,
      [path],
      undefined,
      { under: withoutLocks(dir.path, "EOPNOTSUPP", 1) },
    );
    for (const _ of ["lock", "tryLock"]) {
      const line = await child.line();
      assert(line.includes(`Cannot lock ${path}: `), line);
      assert(line.includes("Operation not supported"), line);
    }
    assertEquals(await child.line(), "false");
  },
);

Deno.test("lock() refuses a wait that the operating system breaks off, and leaves nothing open", async () => {
  using dir = scene();
  const path = resolve(dir.path, "x");
  const holder = Deno.openSync(path, { write: true, create: true });
  holder.lockSync(true);
  {
    using _ = replace(
      Deno.FsFile.prototype,
      "lock",
      () => Promise.reject(new Error("No locks available")),
    );
    const message = `Cannot lock ${path}: `;
    const all = [lock(path), lock(path)];
    for (const waiter of all) {
      const error = await assertRejects(() => soon(waiter), Error, message);
      assertEquals((error.cause as Error).message, "No locks available");
    }
  }
  if (HAS_PROC) {
    assertEquals(openFiles().filter((file) => file === path).length, 1);
  }
  holder.close();
  (await lock(path))();
});

Deno.test("lock() and tryLock() refuse a file that may be opened but not looked at, and leave nothing open", async () => {
  using dir = scene();
  const path = resolve(dir.path, "x");
  for (const acquire of [lock, tryLock]) {
    {
      using _ = replace(Deno, "statSync", () => {
        throw new PermissionDenied("as Deno may");
      });
      const message = `Cannot lock ${path}: `;
      await assertRejects(() => acquire(path), PermissionDenied, message);
    }
    assertEquals(isFree(path), true);
    (await acquire(path))!();
  }
});

Deno.test("lock() of a file that seems to be another one each time says that it waits, and can be given up", async () => {
  using dir = scene();
  const path = resolve(dir.path, "x");
  const { statSync } = Deno;
  let calls = 0;
  {
    using _ = replace(
      Deno,
      "statSync",
      (path) => ({ ...statSync(path), ino: Math.random() }),
    );
    const signal = AbortSignal.timeout(50);
    const error = await assertRejects(
      () => lock(path, { signal, onWait: () => calls++ }),
      DOMException,
    );
    assertEquals(error.name, "TimeoutError");
    assertEquals(await tryLock(path), null);
  }
  assertEquals(calls, 1);
  (await tryLock(path))!();
});

Deno.test("lock() takes a path that it refused before", async () => {
  using dir = scene();
  const path = resolve(dir.path, "missing", "x.lock");
  await assertRejects(() => lock(path), NotFound);
  Deno.mkdirSync(resolve(dir.path, "missing"));
  (await lock(path))();
});

// tryLock()

Deno.test("tryLock() returns null where this process holds the lock or waits for it", async () => {
  using dir = scene();
  const path = resolve(dir.path, "x");
  const release = await tryLock(path);
  assertEquals(await tryLock(path), null);
  const next = lock(path);
  release!();
  assertEquals(await tryLock(path), null);
  (await next)();
  (await tryLock(path))!();
});

Deno.test("tryLock() returns null where another process holds the lock, at once", async () => {
  await using it = await taken();
  assertEquals(await tryLock(it.path), null);
  it.holder.go();
  await it.holder.ended();
  (await tryLock(it.path))!();
});

// The release

Deno.test("Release releases once, by a call or by using, and leaves another's lock", async () => {
  using dir = scene();
  const path = resolve(dir.path, "x");
  const first = await lock(path);
  assertEquals(first(), undefined);
  const second = await lock(path);
  first();
  first[Symbol.dispose]();
  assertEquals(isFree(path), false);
  {
    using _second = second;
  }
  assertEquals(isFree(path), true);
  second();
});

Deno.test("Release does not throw, whatever became of the file", async () => {
  using dir = scene();
  const path = resolve(dir.path, "sub", "x");
  Deno.mkdirSync(resolve(dir.path, "sub"));
  const release = await lock(path);
  Deno.removeSync(resolve(dir.path, "sub"), { recursive: true });
  release();
  release();
});

Deno.test("Release does not throw even if the unlocking fails, and releases", {
  ignore: !HAS_STRACE,
}, async () => {
  using dir = scene();
  const path = resolve(dir.path, "x");
  await using child = script(
    `const release = await lock(args[0]);
     release();
     console.log("released");
     await heard();`,
    [path],
    undefined,
    { under: withoutLocks(dir.path, "EIO", 2) },
  );
  assertEquals(await child.line(), "released");
  assertEquals(isFree(path), true);
  await child.go();
  await child.ended();
});
