import { assert } from "@std/assert/assert";
import { assertEquals } from "@std/assert/equals";
import { assertRejects } from "@std/assert/rejects";
import { delay } from "@std/async/delay";
import { resolve } from "@std/path/resolve";
import { lock, type LockOptions, type Release, tryLock } from "../lock.ts";
import {
  blocked,
  CAN_LINK,
  exists,
  flock,
  has,
  HAS_PROC,
  isFree,
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
} from "./support.ts";

const HAS_FLOCK = has("flock");
const HAS_PYTHON = has("python3");
const HAS_STRACE = HAS_PROC && has("strace"); // Git for Windows has another
const WINDOWS = Deno.build.os === "windows";

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

/** A wait that is under way, and what becomes of it. */
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

// What the surface says

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

Deno.test("lock() refuses a URL that is no file", async () => {
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

Deno.test("lock() does not call onWait for a lock that is free", async () => {
  using dir = scene();
  let calls = 0;
  (await lock(resolve(dir.path, "x"), { onWait: () => calls++ }))();
  assertEquals(calls, 0);
});

Deno.test("lock() calls onWait once, behind its own process and then another", async () => {
  await using it = await taken();
  let calls = 0;
  const first = await waiting(it.path, {
    signal: new AbortController().signal,
  });
  const second = lock(it.path, { onWait: () => calls++ });
  assertEquals(calls, 1);
  await it.holder.go();
  (await soon(first.lock))();
  (await soon(second))();
  assertEquals(calls, 1);
});

Deno.test("lock() rejects if its signal is aborted before it settles, though the lock is free", async () => {
  using dir = scene();
  const path = resolve(dir.path, "x");
  const controller = new AbortController();
  const abandoned = lock(path, controller);
  controller.abort("reason");
  assertEquals(await abandoned.catch((reason) => reason), "reason");
  (await tryLock(path))!();
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

Deno.test("tryLock() gives null where this process holds the lock or waits for it", async () => {
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

Deno.test(
  "tryLock() gives null where another process holds the lock, at once",
  async () => {
    await using it = await taken();
    assertEquals(await tryLock(it.path), null);
    it.holder.go();
    await it.holder.ended();
    (await tryLock(it.path))!();
  },
);

// 1. One way in

Deno.test("1: waiters of one process get the lock in the order in which they asked", async () => {
  using dir = scene();
  const path = resolve(dir.path, "x");
  const release = await lock(path);
  const order: number[] = [];
  const waiters = Array.from({ length: 50 }, async (_, i) => {
    const name = i % 2 ? path : new URL(`file://${path}`);
    const signal = i % 3 ? undefined : AbortSignal.timeout(60_000);
    using _lock = await lock(name, { signal });
    order.push(i);
    await delay(0);
  });
  release();
  await soon(Promise.all(waiters));
  assertEquals(order, Array.from({ length: 50 }, (_, i) => i));
});

Deno.test("1: an abandoned waiter leaves the queue at once, the others keep their order", async () => {
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

Deno.test("1: a waiter abandoned just as its turn comes hands it on", async () => {
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
  "1: a thousand waiters for another process add one open file and a handful of threads",
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

// 2. Waiting for another process

Deno.test(
  "2: without a signal the operating system wakes the waiter, with one it is not in its queue",
  {
    ignore: !HAS_PROC,
  },
  async () => {
    await using it = await taken();
    const controller = new AbortController();
    const polling = await waiting(it.path, { signal: controller.signal });
    assertEquals(blocked(Deno.pid), 0);
    controller.abort();
    await polling.lock.catch(() => {});
    const blocking = await waiting(it.path);
    assertEquals(blocked(Deno.pid), 1);
    await it.holder.go();
    (await soon(blocking.lock))();
  },
);

Deno.test(
  "2: an abandoned wait leaves no open file, no thread, and no lock held by nobody",
  {
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
  "2: a script that abandoned its wait ends at once, although the other process keeps the lock",
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
  "2: once lock() has settled, a long timeout does not keep the script alive",
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

Deno.test("2: a wait with a signal asks after a fortieth of the time waited, 1 ms at least, 100 ms at most", async () => {
  using dir = scene();
  const path = resolve(dir.path, "x");
  using holder = Deno.openSync(path, { write: true, create: true });
  holder.lockSync(true);
  const controller = new AbortController();
  const times = [0, 0, 40, 400, 4000, 40_000]; // the first is the start
  const pauses: (number | undefined)[] = [];
  const { setTimeout } = globalThis;
  using _now = replace(performance, "now", () => times.shift() ?? 0);
  using _timer = replace(
    globalThis,
    "setTimeout",
    ((handler: () => void, ms?: number) => {
      pauses.push(ms);
      if (times.length === 0) controller.abort();
      return setTimeout(handler);
    }) as typeof setTimeout,
  );
  await assertRejects(() => lock(path, controller), DOMException);
  assertEquals(pauses, [1, 1, 10, 100, 100]);
});

Deno.test("2: waits for many files at once leave the process's other file operations alone", async () => {
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

// 3. The same file

for (const kind of ["without a signal", "with a signal"]) {
  const options = kind === "with a signal"
    ? { signal: new AbortController().signal }
    : {};

  Deno.test(
    `3: a waiter ${kind} whose file is replaced waits for the new file's holder too`,
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

  Deno.test(`3: a waiter ${kind} whose file is deleted gets a new file`, async () => {
    await using it = await taken();
    const waiter = await waiting(it.path, options);
    Deno.removeSync(it.path);
    await it.holder.go();
    const release = await soon(waiter.lock);
    assertEquals(isFree(it.path), false);
    release();
  });

  Deno.test(`3: a waiter ${kind} whose directory is deleted is told so`, async () => {
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

Deno.test("3: a file that is written to in that moment is still the same", async () => {
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

Deno.test("3: where files show neither a number nor a birth time of their own, a new file is told by its last write", async () => {
  using dir = scene();
  const path = resolve(dir.path, "x");
  const holder = Deno.openSync(path, { write: true, create: true });
  holder.lockSync(true);
  const { statSync } = Deno;
  const ofFile = Deno.FsFile.prototype.statSync;
  const alike = { ino: null, birthtime: new Date(0) };
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
  const { signal } = new AbortController();
  const waiter = await waiting(path, { signal });
  Deno.removeSync(path);
  Deno.writeTextFileSync(path, "");
  Deno.utimeSync(path, 1, 1);
  holder.close();
  using _lock = await soon(waiter.lock);
  assertEquals(isFree(path), false);
});

Deno.test("3: a holder whose file is deleted still excludes its own process, and releases", async () => {
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
  "3: processes that lock and delete the file at random never hold it together",
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

// 4. Crashes

for (
  const [how, code] of [
    ["is killed", "await heard();"],
    ["exits", "await heard(); Deno.exit(3);"],
    ["throws", `await heard(); throw "an uncaught error, as the test wants";`],
  ]
) {
  Deno.test(`4: a holder that ${how} frees the lock`, async () => {
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

Deno.test("4: a child process started while the lock is held does not inherit it", async () => {
  using dir = scene();
  const path = resolve(dir.path, "x");
  const release = await lock(path);
  await using child = script(`console.log("started"); await heard();`);
  await child.line();
  release();
  assertEquals(isFree(path), true);
});

Deno.test("4: a holder's child process does not keep the lock after a kill", {
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

// 5. Strangers

Deno.test("5: flock(1) excludes lock(), and lock() excludes flock(1)", {
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

Deno.test("5: Python's fcntl.flock excludes lock(), and lock() excludes it", {
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
  "5: six processes of three kinds add up to six hundred on one counter",
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

// 6. Never written

for (const [kind, ignore] of [["a file", false], ["a link", !CAN_LINK]]) {
  Deno.test(`6: neither content nor length of ${kind} at the path changes`, {
    ignore: ignore as boolean,
  }, async () => {
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
  });
}

Deno.test("6: the file is open for reading and writing", {
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

Deno.test("6: a file that may only be read is locked all the same", async () => {
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

// 7. Clear refusals

Deno.test("7: a directory at the path is refused, and nothing is left open", async () => {
  using dir = scene();
  for (const acquire of [lock, tryLock]) {
    const Class = WINDOWS ? Error : Deno.errors.IsADirectory;
    const error = await assertRejects(
      () => acquire(dir.path),
      Class,
      `Cannot lock ${dir.path}: it is a directory`,
    );
    assert(error.cause instanceof Class);
  }
  if (HAS_PROC) assertEquals(openFiles().includes(dir.path), false);
});

Deno.test("7: a directory is refused where only reading is permitted, too", async () => {
  using dir = scene();
  await using child = script(
    `await lock(args[0]).catch((error) => console.log(error.name));`,
    [dir.path],
    [`--allow-read=${dir.path}`],
  );
  assertEquals(await child.line(), "NotCapable");
  await child.ended();
});

Deno.test(
  "7: a pipe at the path that may not be written is refused, without waiting for a writer",
  {
    ignore: !has("mkfifo"),
  },
  async () => {
    using dir = scene();
    const path = resolve(dir.path, "pipe");
    new Deno.Command("mkfifo", { args: [path] }).outputSync();
    await using child = script(
      `await lock(args[0]).catch((error) => console.log(error.name));`,
      [path],
      [`--allow-read=${dir.path}`],
    );
    assertEquals(await child.line(), "NotCapable");
  },
);

Deno.test("7: a missing parent is refused by name", async () => {
  using dir = scene();
  const path = resolve(dir.path, "missing", "x.lock");
  for (const acquire of [lock, tryLock]) {
    const error = await assertRejects(
      () => acquire(path),
      Deno.errors.NotFound,
      `Cannot lock ${path}: its directory is missing`,
    );
    assert(error.cause instanceof Deno.errors.NotFound);
  }
});

Deno.test("7: no permission is refused by path", async () => {
  using dir = scene();
  const path = resolve(dir.path, "x");
  await using child = script(
    `await lock(args[0]).catch((error) =>
       console.log(error instanceof Deno.errors.NotCapable, error.message));`,
    [path],
    [],
  );
  assert((await child.line()).startsWith(`true Cannot lock ${path}: `));
});

Deno.test("7: a file that the user may not open is refused by path", {
  ignore: WINDOWS || Deno.uid() === 0,
}, async () => {
  using dir = scene();
  const path = resolve(dir.path, "x");
  Deno.writeTextFileSync(path, "", { mode: 0 });
  await assertRejects(() => lock(path), Deno.errors.PermissionDenied, path);
});

/** Runs `code` where flock(2) fails with `error` from the `nth` time on. */
function withoutLocks(
  dir: string,
  error: string,
  nth: number,
  code: string,
  args: string[],
): Peer {
  const under = ["strace", "-f", "-qq", "-o", resolve(dir, "trace")]
    .concat("-e", "trace=flock")
    .concat("-e", `inject=flock:error=${error}:when=${nth}+`);
  return script(code, args, undefined, { under });
}

Deno.test(
  "7: a file system without locks is refused, and nothing is left open",
  {
    ignore: !HAS_STRACE,
  },
  async () => {
    using dir = scene();
    const path = resolve(dir.path, "x");
    const code = `
    for (const acquire of [lock, tryLock]) {
      await acquire(args[0]).catch((error) => console.log(error.message));
    }
    console.log([...Deno.readDirSync("/proc/self/fd")].some(({ name }) => {
      try {
        return Deno.readLinkSync("/proc/self/fd/" + name) === args[0];
      } catch {}
    }));`;
    await using child = withoutLocks(dir.path, "EOPNOTSUPP", 1, code, [path]);
    for (const _ of ["lock", "tryLock"]) {
      const line = await child.line();
      assert(line.startsWith(`Cannot lock ${path}: `), line);
      assert(line.includes("Operation not supported"), line);
    }
    assertEquals(await child.line(), "false");
    await child.ended();
  },
);

Deno.test("7: a wait that the operating system breaks off is refused, and nothing is left open", async () => {
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
    const error = await assertRejects(() => lock(path), Error, message);
    assertEquals((error.cause as Error).message, "No locks available");
  }
  if (HAS_PROC) {
    assertEquals(openFiles().filter((file) => file === path).length, 1);
  }
  holder.close();
  (await lock(path))();
});

Deno.test("7: a file that may be opened but not looked at is refused, and nothing is left open", async () => {
  using dir = scene();
  const path = resolve(dir.path, "x");
  {
    using _ = replace(Deno, "statSync", () => {
      throw new Deno.errors.PermissionDenied("as Deno may");
    });
    await assertRejects(
      () => tryLock(path),
      Deno.errors.PermissionDenied,
      `Cannot lock ${path}: `,
    );
  }
  (await tryLock(path))!();
});

Deno.test("7: a file that seems to be another one each time is told of, and can be given up", async () => {
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

Deno.test("7: a path with a NUL in it is refused", async () => {
  for (const acquire of [lock, tryLock]) {
    await assertRejects(() => acquire("a\0b"), TypeError, "Cannot lock ");
  }
});

Deno.test("7: after a refusal the path can be locked", async () => {
  using dir = scene();
  const path = resolve(dir.path, "missing", "x.lock");
  await assertRejects(() => lock(path), Deno.errors.NotFound);
  Deno.mkdirSync(resolve(dir.path, "missing"));
  (await lock(path))();
});

// 8. Release

Deno.test("8: a release releases once, by call or by using, and another's lock stays", async () => {
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

Deno.test("8: a release does not throw, whatever became of the file", async () => {
  using dir = scene();
  const path = resolve(dir.path, "sub", "x");
  Deno.mkdirSync(resolve(dir.path, "sub"));
  const release = await lock(path);
  Deno.removeSync(resolve(dir.path, "sub"), { recursive: true });
  release();
  release();
});

Deno.test(
  "8: a release does not throw even if the unlocking fails, and releases",
  {
    ignore: !HAS_STRACE,
  },
  async () => {
    using dir = scene();
    const path = resolve(dir.path, "x");
    const code = `
    const release = await lock(args[0]);
    release();
    console.log("released");
    await heard();`;
    await using child = withoutLocks(dir.path, "EIO", 2, code, [path]);
    assertEquals(await child.line(), "released");
    assertEquals(isFree(path), true);
    await child.go();
    await child.ended();
  },
);
