/** What processes do at the same time, and what must hold then. */

import type * as Library from "../../mod.ts";
import { exists, type Port, State } from "./port.ts";
import { OWNER, stand, STANDS } from "./stand.ts";

/** A process, which plays one of the variants. */
type Process = (
  library: typeof Library,
  directory: string,
  port: Port,
  variant: number,
) => Promise<void>;

export interface Scenario {
  processes: Process[];
  variants?: number;
  /** How many preemptions are tried, unless somebody asks for more: two, or fewer. */
  preemptions?: number;
  /** Whether one process may be killed. */
  kills?: boolean;
  /** Whether something may be left to sweep, even without a kill. */
  sweeps?: boolean;
  setup?(directory: string, variant: number): unknown;
  /** What is wrong at the end, if anything. */
  end?(directory: string): string | undefined;
  /** The directories of `.cog` in which scratch is created. */
  dirs?: string[];
}

type Target = string | Library.TempPathOptions;

/** Takes scratch, which must stay as it is until the close. */
const own = (target: Target = {}): Process => async ({ open }, at, port) => {
  const cog = await open(at);
  const path = await cog.tempPath(target as string);
  Deno.writeTextFileSync(`${path}/mine`, "");
  Deno.lstatSync(`${path}/mine`);
  await cog.close();
  port.check(!port.sees(path), "no scratch");
};

/** Only sweeps, then fails: no file system allows such a name. */
const sweepIn = (cog: Library.Dir) =>
  cog.tempPath("x".repeat(300)).catch(() => {});
const sweep: Process = async ({ open }, at) => {
  const cog = await open(at);
  await sweepIn(cog);
  await cog.close();
};

/** Takes the same scratch as others, against the advice, and closes. */
const careless: Process = async ({ open }, at) => {
  const cog = await open(at);
  await cog.tempPath("staging");
  await cog.close();
};

/** Has the name first, and closes after or while another takes it. */
const loseName: Process = async ({ open }, at, port, isLate) => {
  const cog = await open(at);
  await cog.tempPath("staging");
  port.say([1]);
  if (isLate) port.await(2);
  const told = await cog.close().catch(({ message }) => message);
  port.check(!told || told.includes("could not return"), "no other error");
  port.say([3]);
};

/** Takes the name from another, whose close must leave it alone. */
const takeName: Process = async ({ open }, at, port, isLate) => {
  port.await(1);
  const cog = await open(at);
  const mine = `${await cog.tempPath("staging")}/mine`;
  port.say([2]);
  port.ask(State.AwaitsTimer, "yields"); // others go on without a preemption
  await sweepIn(cog);
  try {
    Deno.writeTextFileSync(mine, "");
  } catch (error) {
    if (isLate) throw error;
    port.await(3); // it was away for a moment, as the documentation says
    Deno.writeTextFileSync(mine, "");
  }
  port.await(3);
  Deno.lstatSync(mine);
  await cog.close();
};

/** Takes the name from another, who may die when it has moved the new scratch. */
const keepName: Process = async ({ open }, at, port) => {
  if (port.shared[1] === 0) return; // the other has not had it
  const cog = await open(at);
  const places = [
    await cog.tempPath("staging"),
    ...claimed.map((it) => it(at)),
  ];
  port.ask(State.AwaitsTimer, "yields");
  await sweepIn(cog);
  port.check(places.some((it) => port.sees(it)), "my scratch, here or moved");
  await cog.close();
};

/** Takes the name twice, as if a mover had not given the first scratch back. */
const takeTwice: Process = async ({ open }, at, port) => {
  if (port.shared[1] === 0) return;
  const cog = await open(at);
  await cog.tempPath("staging");
  port.ask(State.AwaitsTimer, "yields");
  await cog.tempPath("staging");
  port.await(3);
  await cog.close();
};

/** Builds where only builds do, under the lock. */
const build: Process = async ({ open }, at, port) => {
  const cog = await open(at);
  await cog.lock();
  port.enter();
  const path = await cog.tempPath("staging");
  Deno.writeTextFileSync(`${path}/mine`, "");
  port.check([...Deno.readDirSync(path)].length === 1, "my file only");
  port.leave();
  await cog.close();
};

type After = (file: string) => void;
const remove: After = (file) => Deno.removeSync(file);
const replaceDirectory: After = (file) => {
  const directory = file.slice(0, file.lastIndexOf("/"));
  Deno.renameSync(directory, `${directory}.old`);
  Deno.mkdirSync(directory);
};
const replace: After = (file) => {
  Deno.writeTextFileSync(`${file}.new`, "");
  Deno.renameSync(`${file}.new`, file);
};

/** Holds the lock for a while, and may alter the file at the end. */
const hold =
  (how: "wait" | "poll" | "try", after?: After): Process =>
  async ({ lock, tryLock }, at, port) => {
    const path = `${at}/x.lock`;
    const { signal } = new AbortController();
    const release = how === "try"
      ? await tryLock(path)
      : await lock(path, how === "poll" ? { signal } : {});
    if (!release) return;
    port.enter();
    Deno.lstatSync(at);
    port.leave();
    after?.(path);
    release();
  };

const alterations = [remove, replace, replaceDirectory];

/** Holds the lock, alters the file by the variant, and tries to hold it again. */
const alter: Process = async (library, at, port, variant) => {
  await hold("wait", alterations[variant >> 1])(library, at, port, 0);
  await hold("try")(library, at, port, 0);
};

/** Waits, with a signal in every second variant. */
const waiter: Process = (library, at, port, variant) =>
  hold(variant % 2 ? "poll" : "wait")(library, at, port, 0).catch((error) => {
    const mayMiss = alterations[variant >> 1] === replaceDirectory;
    if (!mayMiss || !(error instanceof Deno.errors.NotFound)) throw error;
  });

/** Holds the lock until another has a place, and may alter the file at the end. */
const holdFirst =
  (...afters: After[]): Process => async ({ lock }, at, port, variant) => {
    const path = `${at}/x.lock`;
    const release = await lock(path);
    port.enter();
    port.say([1]);
    port.await(STANDS);
    port.leave();
    afters[variant]?.(path);
    release();
  };

/** Holds the lock first, alters the file by the variant, and tries again. */
const alterFirst: Process = async (library, at, port, variant) => {
  await holdFirst(() => {}, remove, replace)(library, at, port, variant);
  await hold("try")(library, at, port, 0);
};

/** Does something while another holds the lock. */
const meanwhile =
  (process: Process): Process => async (library, at, port, variant) => {
    port.await(1);
    await process(library, at, port, variant);
  };

/** Shares the lock until another has a place, and then again. */
const read: Process = async (_, at, port) => {
  const yields = () => port.ask(State.AwaitsTimer, "yields");
  using file = await Deno.open(`${at}/x.lock`, { read: true });
  for (const isFirst of [true, false]) {
    await file.lock(false);
    if (isFirst) port.say([1]);
    port.await(STANDS);
    yields();
    port.check(port.shared[0] === 0, "no holder");
    file.unlockSync();
    if (isFirst) yields();
  }
};

/** Gives up when the worker of its place has started, stands, or has the lock. */
const leave: Process = async ({ lock }, at, port, variant) => {
  const controller = new AbortController();
  port.onPause = () => port.shared[OWNER + variant] && controller.abort();
  const acquired = lock(`${at}/x.lock`, controller);
  const release = await acquired.catch((reason: Error) => {
    port.check(reason === controller.signal.reason, "the signal's reason");
  });
  if (!release) return;
  port.enter();
  port.leave();
  release();
};

/** Gives up after some microtasks, or has the lock by then. */
const giveUp =
  (polls: boolean): Process => async ({ lock, open }, at, port, microtasks) => {
    const controller = new AbortController();
    const cog = await open(at);
    const path = `${at}/x.lock`;
    const acquired = polls ? lock(path, controller) : cog.lock();
    const settled = acquired.then(() => true, () => false);
    for (let i = 0; i < microtasks; i++) await null;
    const isPending = Deno.inspect(acquired).includes("<pending>");
    if (polls) controller.abort();
    else cog.close();
    const isHeld = await settled;
    port.check(isHeld !== isPending, "a rejection if it was pending");
    if (isHeld && polls) (await acquired)();
    await cog.close();
  };

/** Closes the handle some microtasks after it has asked for scratch. */
const closeEarly =
  (target?: Target): Process => async ({ open }, at, _, microtasks) => {
    const cog = await open(at);
    const scratch = cog.tempPath(target as string).catch(() => {});
    for (let i = 0; i < microtasks; i++) await null;
    await cog.close();
    await scratch;
  };

const creating = (name: string) => (at: string) =>
  Deno.mkdirSync(`${at}/.cog/${name}/sub`, { recursive: true });
const used = creating("staging");

/** What the first processes claim. */
const claimed = Array.from(
  { length: 9 },
  (_, i) => (at: string) =>
    `${at}/.cog/.scratch-00000000-0000-4000-8000-00000000000${i}`,
);

/** Nobody's claims. */
const others = [".lock", "x.lock", ".scratch-0.lock", "UUID.lock.bak"]
  .map((name) =>
    name.replace("UUID", ".scratch-00000000-0000-4000-8000-0000000000bb")
  );

/** Scratch whose owner was killed, and other files. */
function litter(at: string): void {
  const name = ".scratch-00000000-0000-4000-8000-0000000000aa";
  creating(name)(at);
  for (const it of [`${name}.lock`, ...others]) {
    Deno.writeTextFileSync(`${at}/.cog/${it}`, "");
  }
}

const kept = (at: string) =>
  others.every((it) => exists(`${at}/.cog/${it}`))
    ? undefined
    : "a file is lost";
const gone = (at: string) =>
  exists(`${at}/.cog/staging`) ? "staging is left" : undefined;

/**
 * Faults put into the library on purpose, and the scenarios that find them:
 *
 * - no look whether a locked file is current, in a try or in a wait: wait-deleted,
 *   wait-altered, place-altered
 * - no such look at a new lock file of scratch: nameless, nameless-dir
 * - a sweep that does not try the claim: nameless, nameless-three, nameless-dir
 * - one that does not try the lock of the directory: name-kept
 * - a claim released before its tree is gone: nameless, build-nameless
 * - a lock file deleted while something stands at the claimed path: name-left
 * - no look at the identity of named scratch before it is moved aside, none after,
 *   or no return of a stranger's: name-taken
 * - no retry of a race: builds, careless, parents
 * - an exclusive lock before the worker of a place has closed, a worker that keeps
 *   its lock, or a place that nobody leaves: place
 * - a grant where the lock is only shared: place-read
 *
 * A deletion finds entries by their paths here, so it never follows a directory
 * that is moved meanwhile.
 */
export const scenarios: Record<string, Scenario> = {
  "nameless-three": { processes: Array(3).fill(own()) },
  "close-nameless": {
    processes: [closeEarly(), sweep],
    setup: litter,
    variants: 4,
    end: kept,
  },
  "nameless": {
    processes: Array(2).fill(own()),
    setup: (at, variant) => variant === 1 && litter(at),
    variants: 2,
    kills: true,
  },
  "nameless-dir": {
    processes: Array(2).fill(own({ dir: "a" })),
    dirs: ["", "a"],
    kills: true,
  },
  "builds": { processes: Array(2).fill(build), setup: used, kills: true },
  "build-nameless": { processes: [build, own()], kills: true },
  "careless": {
    processes: Array(2).fill(careless),
    setup: (at, variant) => variant === 1 && used(at),
    variants: 2,
    end: gone,
    kills: true,
  },
  "name-taken": { processes: [loseName, takeName], end: gone, variants: 2 },
  "name-kept": { processes: [loseName, keepName], kills: true },
  "name-left": { processes: [loseName, takeTwice], sweeps: true },
  "parents": {
    processes: [own("a/x"), own("a/y")],
    dirs: ["", "a"],
    kills: true,
  },
  "wait": { processes: [...Array(2).fill(hold("wait")), hold("try")] },
  "wait-polling": { processes: [hold("wait"), hold("poll"), hold("try")] },
  "wait-deleted": { processes: Array(3).fill(hold("wait", remove)) },
  "wait-altered": { processes: [alter, waiter], variants: 6 },
  "wait-killed": {
    processes: [hold("wait"), waiter],
    variants: 2,
    kills: true,
  },
  "place": {
    processes: [holdFirst(), meanwhile(hold("poll")), stand],
    kills: true,
  },
  "place-altered": {
    processes: [alterFirst, meanwhile(hold("poll")), stand],
    variants: 3,
    preemptions: 1,
  },
  "place-read": {
    processes: [read, meanwhile(hold("poll")), stand],
    preemptions: 1,
    setup: (at) => Deno.writeTextFileSync(`${at}/x.lock`, ""),
  },
  "place-left": {
    processes: [holdFirst(), meanwhile(leave), stand],
    variants: 3,
  },
  "give-up": { processes: [hold("wait"), giveUp(true)], variants: 10 },
  "close-waiting": { processes: Array(2).fill(giveUp(false)), variants: 9 },
  "close-named": {
    processes: [closeEarly("staging"), sweep],
    setup: used,
    end: gone,
    kills: true,
  },
};
