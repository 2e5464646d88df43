/** What the lock costs, beside the calls it is made of and beside its peers. */

import { delay } from "@std/async/delay";
import { resolve } from "@std/path/resolve";
import { lock } from "../lock.ts";
import { compare, perCall } from "./compare.ts";
import { has, HAS_PROC, Peer, scene, script, stranger } from "./support.ts";

const READ_WRITE = { read: true, write: true, create: true };

const dir = scene();
addEventListener("unload", () => dir[Symbol.dispose]());
const path = resolve(dir.path, "x.lock");

const { signal } = new AbortController();
const lockOnce = async () => (await lock(path))();

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
  "lock()": () => perCall(200, lockOnce),
  "lock() with an AbortSignal": () =>
    perCall(200, async () => (await lock(path, { signal }))()),
  "plain: open, lock, unlock, close": () => perCall(200, plain),
});

/** The microseconds for each waiter from the release that starts them. */
async function drain(waiters: number): Promise<number> {
  const release = await lock(path);
  const all = Array.from({ length: waiters }, lockOnce);
  await delay(200);
  const start = performance.now();
  release();
  await Promise.all(all);
  return (performance.now() - start) * 1000 / waiters;
}
compare("waiters of one process drained, per waiter", "µs", 5, {
  "uncontended": () => perCall(1000, lockOnce),
  "1,000 waiters": () => drain(1000),
  "10,000 waiters": () => drain(10_000),
});

/** A process that holds the lock for about a second and says when it let go. */
const HOLDER = `
  const file = Deno.openSync(args[0], { read: true, write: true, create: true });
  file.lockSync(true);
  console.log("held");
  await new Promise((resolve) => setTimeout(resolve, 900 + 200 * Math.random()));
  const now = performance.timeOrigin + performance.now();
  file.unlockSync();
  console.log(now);`;

/** The milliseconds from another process's release to the waiter's acquire. */
async function handOver(acquire: () => Promise<number>): Promise<number> {
  await using holder = script(HOLDER, [path]);
  await holder.line();
  const acquired = await acquire();
  return acquired - Number(await holder.line());
}

const patient = () => lock(path);
const impatient = () => lock(path, { signal: AbortSignal.timeout(600_000) });
async function poll(): Promise<Deno.FsFile> {
  const file = Deno.openSync(path, READ_WRITE);
  while (!file.tryLockSync(true)) await delay(100);
  return file;
}
async function flock(): Promise<number> {
  await using peer = new Peer("flock", [path, "date", "+%s.%N"]);
  return Number(await peer.line()) * 1000;
}
const timed = (acquire: () => Promise<Disposable>) => async () => {
  using _lock = await acquire();
  return performance.timeOrigin + performance.now();
};

compare("hand-over from another process, after about a second", "ms", 30, {
  "lock()": () => handOver(timed(patient)),
  "lock() with an AbortSignal": () => handOver(timed(impatient)),
  "polling every 100 ms, as Go does": () => handOver(timed(poll)),
  ...has("flock") && { "flock(1)": () => handOver(flock) },
});

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
    "lock() with an AbortSignal": () =>
      cpu("await lock(args[0], { onWait, signal: AbortSignal.timeout(1e6) });"),
    "lock()": () => cpu("await lock(args[0], { onWait });"),
  });
}

/** The milliseconds to the lock beside callers of one process that hold it by turns. */
async function beside(
  callers: number,
  hold: number,
  acquire: () => Promise<Disposable>,
): Promise<number> {
  const code = `
    async function again() {
      while (true) {
        using _lock = await lock(args[0]);
        await new Promise((resolve) => setTimeout(resolve, ${hold}));
      }
    }
    for (let i = 0; i < ${callers}; i++) again();
    console.log("started");`;
  await using other = script(code, [path]);
  using _end = { [Symbol.dispose]: () => other.kill() };
  await other.line();
  await delay(200 + 100 * Math.random());
  const start = performance.now();
  using _lock = await acquire();
  return performance.now() - start;
}
/** The grants in eight seconds to three processes without a signal, and to three with one. */
async function mix(hold: number): Promise<number[]> {
  const code = `
    let grants = 0;
    let isOver = false;
    heard().then(() => isOver = true);
    console.log("started");
    while (!isOver) {
      const signal = args[1] ? AbortSignal.timeout(600_000) : undefined;
      using _lock = await lock(args[0], { signal });
      grants++;
      await new Promise((resolve) => setTimeout(resolve, ${hold}));
    }
    console.log(grants);
    Deno.exit();`;
  await using stack = new AsyncDisposableStack();
  const start = (...how: string[]) =>
    [1, 2, 3].map(() => stack.use(script(code, [path, ...how])));
  const kinds = [start(), start("with a signal")];
  for (const peer of kinds.flat()) await peer.line();
  await delay(8000);
  for (const peer of kinds.flat()) await peer.go();
  return await Promise.all(kinds.map(async (peers) => {
    const grants = await Promise.all(peers.map((peer) => peer.line()));
    return grants.reduce((sum, many) => sum + Number(many), 0);
  }));
}
for (const hold of [10, 50, 300]) {
  let grants: number[];
  compare(`grants to six that hold it ${hold} ms`, "", 3, {
    "three without an AbortSignal": async () => (grants = await mix(hold))[0],
    "three with one": () => grants[1],
  });
}
compare("wait of a 100 ms poller beside callers of one process", "ms", 15, {
  "four by turns that hold it 5 ms": () => beside(4, 5, poll),
  "one in a loop that holds it 5 ms": () => beside(1, 5, poll),
  "two by turns that hold it 1,000 ms": () => beside(2, 1000, poll),
});
