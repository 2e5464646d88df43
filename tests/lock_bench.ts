/** What the lock costs, beside the calls it is made of and beside its peers. */

import { delay } from "@std/async/delay";
import { resolve } from "@std/path/resolve";
import { open } from "../dir.ts";
import { lock } from "../lock.ts";
import { compare, type Contenders, perCall } from "./compare.ts";
import {
  has,
  HAS_PROC,
  Peer,
  scene,
  script,
  stranger,
  threads,
} from "./support.ts";

const READ_WRITE = { read: true, write: true, create: true };
const SIGNAL = () => AbortSignal.timeout(600_000);

const dir = scene();
addEventListener("unload", () => dir[Symbol.dispose]());
const path = resolve(dir.path, "x.lock");

async function plain(): Promise<void> {
  const file = await Deno.open(path, READ_WRITE);
  await file.lock(true);
  await file.unlock();
  file.close();
}

compare("acquire + release, uncontended", "µs", 50, {
  "floor: openSync, tryLockSync, 2 stats, close": () =>
    perCall(200, () => {
      const file = Deno.openSync(path, READ_WRITE);
      file.tryLockSync(true);
      file.statSync();
      Deno.statSync(path);
      file.close();
    }),
  "lock()": () => perCall(200, async () => (await lock(path))()),
  "lock() with a signal": () => {
    const { signal } = new AbortController();
    return perCall(200, async () => (await lock(path, { signal }))());
  },
  "plain: open, lock, unlock, close": () => perCall(200, plain),
});

/** A way to hold the lock, and what its waiters do once they have it. */
interface Queue {
  hold: () => Disposable | Promise<Disposable>;
  wait: () => Promise<void>;
}
const ours: Queue = {
  hold: () => lock(path),
  wait: async () => (await lock(path))(),
};
const bare: Queue = {
  hold: () => {
    const file = Deno.openSync(path, READ_WRITE);
    file.lockSync(true);
    return file;
  },
  wait: plain,
};

/** What `waiters` calls at once cost, each, from the release that starts them. */
async function drain(
  waiters: number,
  { hold, wait }: Queue,
): Promise<number> {
  const holder = await hold();
  const before = { threads: threads(), memory: Deno.memoryUsage().rss };
  const all = Array.from({ length: waiters }, wait);
  await delay(200);
  most = {
    threads: threads() - before.threads,
    memory: (Deno.memoryUsage().rss - before.memory) / 2 ** 20,
  };
  const start = performance.now();
  holder[Symbol.dispose]();
  await Promise.all(all);
  return (performance.now() - start) * 1000 / waiters;
}
let most: { threads: number; memory: number };

compare("waiters of one process drained, per waiter", "µs", 5, {
  "uncontended": () => perCall(1000, ours.wait),
  "1,000 waiters": () => drain(1000, ours),
  "10,000 waiters": () => drain(10_000, ours),
  "1,000 plain ones": () => drain(1000, bare),
});
compare("threads that 1,000 waiters add", "", 3, {
  "plain": async () => (await drain(1000, bare), most.threads),
  "lock()": async () => (await drain(1000, ours), most.threads),
});
compare("memory that 1,000 waiters add", "MiB", 3, {
  "plain": async () => (await drain(1000, bare), most.memory),
  "lock()": async () => (await drain(1000, ours), most.memory),
});

/** What it costs each of many waiters of this process to give up at once. */
async function abandon(waiters: number): Promise<number> {
  using _held = await lock(path);
  const controller = new AbortController();
  const all = Array.from({ length: waiters }, () => lock(path, controller));
  const settled = Promise.allSettled(all);
  await delay(10);
  const start = performance.now();
  controller.abort();
  await settled;
  return (performance.now() - start) * 1000 / waiters;
}
compare("waiters of one process abandoned by one signal, per waiter", "µs", 5, {
  "1,000 waiters": () => abandon(1000),
  "10,000 waiters": () => abandon(10_000),
  "100,000 waiters": () => abandon(100_000),
});

/** The milliseconds in which a hundred callers hold the lock for 2 ms each. */
async function turns(
  acquire: () => Disposable | Promise<Disposable>,
): Promise<number> {
  const start = performance.now();
  const callers = Array.from({ length: 100 }, async () => {
    using _lock = await acquire();
    await delay(2);
  });
  await Promise.all(callers);
  return performance.now() - start;
}
let turn: Promise<unknown> = Promise.resolve();
compare("a hundred callers of one process that hold it 2 ms each", "ms", 9, {
  "bare: a chain of promises, openSync, lockSync, close": () =>
    turns(async () => {
      const { promise, resolve } = Promise.withResolvers<void>();
      const before = turn;
      turn = promise;
      await before;
      const file = Deno.openSync(path, READ_WRITE);
      file.lockSync(true);
      return {
        [Symbol.dispose]() {
          file.close();
          resolve();
        },
      };
    }),
  "lock()": () => turns(() => lock(path)),
});

const NOW = "performance.timeOrigin + performance.now()";

/** A process that holds the lock for about a second and says when it let go. */
const HOLDER = `
  const file = Deno.openSync(args[0], { read: true, write: true, create: true });
  file.lockSync(true);
  console.log("held");
  await new Promise((resolve) => setTimeout(resolve, 900 + 200 * Math.random()));
  const now = ${NOW};
  file.unlockSync();
  console.log(now);`;

/** The milliseconds from another process's release to the waiter's acquire. */
async function handOver(
  acquire: (path: string) => Promise<number>,
): Promise<number> {
  await using holder = script(HOLDER, [path]);
  await holder.line();
  const acquired = await acquire(path);
  return acquired - Number(await holder.line());
}
const here = () => performance.timeOrigin + performance.now();

const hand: Contenders = {
  "lock()": () =>
    handOver(async (path) => {
      using _lock = await lock(path);
      return here();
    }),
  "lock() with a signal": () =>
    handOver(async (path) => {
      using _lock = await lock(path, { signal: SIGNAL() });
      return here();
    }),
  "polling each 100 ms, as Go does": () =>
    handOver(async (path) => {
      using file = Deno.openSync(path, READ_WRITE);
      while (!file.tryLockSync(true)) await delay(100);
      return here();
    }),
};
if (has("flock")) {
  hand["flock(1)"] = () =>
    handOver(async (path) => {
      await using peer = new Peer("flock", [path, "date", "+%s.%N"]);
      return Number(await peer.line()) * 1000;
    });
}
compare("hand-over from another process, after about a second", "ms", 30, hand);

/** The share of one core that a process takes while it waits ten seconds. */
async function cpu(code: string): Promise<number> {
  await using holder = stranger(path);
  await holder.line();
  await using waiter = script(
    `const onWait = () => console.log("waiting"); ${code}`,
    [path],
  );
  await waiter.line();
  await delay(500);
  const time = () =>
    Deno.readTextFileSync(`/proc/${waiter.pid}/stat`)
      .split(" ").slice(13, 15).reduce((sum, ticks) => sum + Number(ticks), 0);
  const before = time();
  await delay(10_000);
  const share = (time() - before) / 10; // a hundred ticks a second
  await holder.go();
  return share;
}
if (HAS_PROC) {
  compare("processor time while waiting, of one core", "%", 1, {
    "lock() with a signal": () =>
      cpu("await lock(args[0], { onWait, signal: AbortSignal.timeout(1e6) });"),
    "lock()": () => cpu("await lock(args[0], { onWait });"),
    "polling each 100 ms, as Go does": () =>
      cpu(`onWait();
        const file = Deno.openSync(args[0], { read: true, write: true });
        while (!file.tryLockSync(true)) {
          await new Promise((resolve) => setTimeout(resolve, 100));
        }`),
  });
}

/** The milliseconds to the lock beside three that hold it by turns. */
async function beside(
  acquire: () => Promise<Disposable>,
  hold = 10,
): Promise<number> {
  const code = `
    console.log("started");
    for (;;) {
      using _lock = await lock(args[0]);
      await new Promise((resolve) => setTimeout(resolve, ${hold}));
    }`;
  await using stack = new AsyncDisposableStack();
  const others = [0, 1, 2].map(() => stack.use(script(code, [path])));
  stack.defer(() => others.forEach((peer) => peer.kill()));
  for (const peer of others) await peer.line();
  await delay(200);
  const start = performance.now();
  using _lock = await acquire();
  return performance.now() - start;
}
compare("wait beside three that hold it 10 ms by turns", "ms", 9, {
  "lock()": () => beside(() => lock(path)),
  "lock() behind one with a signal": () =>
    beside(async () => {
      const first = lock(path, { signal: SIGNAL() });
      const second = lock(path);
      (await first)();
      return await second;
    }),
  "lock() with a signal": () => beside(() => lock(path, { signal: SIGNAL() })),
});

/** The milliseconds until a try each 100 ms gets in beside such a process. */
async function poll(callers: number, hold: number, spin = 0): Promise<number> {
  const code = `
    const again = async () => {
      for (;;) {
        {
          using _lock = await lock(args[0]);
          await new Promise((resolve) => setTimeout(resolve, ${hold}));
        }
        const end = performance.now() + ${spin};
        while (performance.now() < end);
      }
    };
    for (let i = 0; i < ${callers}; i++) again();
    console.log("started");`;
  await using busy = script(code, [path]);
  await busy.line();
  await delay(200 + 100 * Math.random());
  const start = performance.now();
  using file = Deno.openSync(path, READ_WRITE);
  while (!file.tryLockSync(true)) await delay(100);
  busy.kill();
  return performance.now() - start;
}
compare("wait of a 100 ms poller beside callers of one process", "ms", 15, {
  "four by turns that hold it 5 ms": () => poll(4, 5),
  "one in a loop that holds it 5 ms": () => poll(1, 5),
  "two by turns that hold it 600 ms": () => poll(2, 600),
  "two by turns that hold it 1,000 ms": () => poll(2, 1000),
  "one that holds it 99 ms and spins 1.3 ms": () => poll(1, 99, 1.3),
  "one that holds it 50 ms and spins 1.3 ms": () => poll(1, 50, 1.3),
});

/** The milliseconds to the grant, behind handles that closed while waiting. */
async function behindClosed(handles: number): Promise<number> {
  const project = resolve(dir.path, "project");
  await using cog = await open(project);
  await using holder = script(HOLDER, [resolve(cog.root, "cog.lock")]);
  await holder.line();
  for (let i = 0; i < handles; i++) {
    const closed = await open(project);
    closed.lock().catch(() => {});
    await closed.close();
  }
  await cog.lock();
  const granted = here();
  return granted - Number(await holder.line());
}
compare("grant by another process's release", "ms", 9, {
  "alone": () => behindClosed(0),
  "behind 1,000 closed handles": () => behindClosed(1000),
});

/** The microseconds of a free lock beside others that this thread holds. */
async function besideHeld(held: number): Promise<number> {
  using stack = new DisposableStack();
  for (let i = 0; i < held; i++) stack.use(await lock(`${path}${i}`));
  return await perCall(200, async () => (await lock(path))());
}
compare("acquire + release beside held locks", "µs", 15, {
  "alone": () => besideHeld(0),
  "beside 500": () => besideHeld(500),
});

/** The milliseconds of a hand-over while this thread waits for other paths. */
async function besideWaited(waited: number): Promise<number> {
  using held = new DisposableStack();
  const controller = new AbortController();
  for (let i = 0; i < waited; i++) {
    const file = held.use(Deno.openSync(`${path}${i}`, READ_WRITE));
    file.lockSync(true);
    lock(`${path}${i}`, controller).catch(() => {});
  }
  try {
    return await handOver(async (path) => {
      using _lock = await lock(path);
      return here();
    });
  } finally {
    controller.abort();
  }
}
compare("hand-over while other paths are waited for", "ms", 9, {
  "alone": () => besideWaited(0),
  "beside 400, with a signal": () => besideWaited(400),
});
