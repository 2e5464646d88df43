/** What processes do at the same time, and what must hold then. */

import type * as Library from "../../mod.ts";
import { exists } from "../support.ts";
import type { Port } from "./port.ts";

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
  /** Whether one process may be killed, at any step. */
  kills?: boolean;
  setup?(directory: string): void;
  /** What is wrong at the end, if anything. */
  end?(directory: string): string | undefined;
  /** The directories of `.cog` in which scratch is created. */
  dirs?: string[];
  /** The number of the only process to preempt. By default, all may be. */
  preempted?: number;
  /** The most preemptions that a test run tries. By default, two. */
  most?: number;
}

type Target = string | Library.TempPathOptions;

/** Takes scratch, which must stay as it is until the close. */
const own = (target: Target = {}): Process => async ({ open }, at, port) => {
  const cog = await open(at);
  const path = await cog.tempPath(target as string);
  Deno.writeTextFileSync(`${path}/mine`, "");
  port.check(exists(`${path}/mine`), "my file");
  const isNameless = typeof target !== "string"; // swept after a crash, if locked
  port.check(exists(`${path}.lock`) === isNameless, "a lock file beside it");
  Deno.lstatSync(path); // others get their turn
  port.check(exists(`${path}/mine`), "my file, still");
  await cog.close();
  port.check(!exists(`${path}/mine`), "nothing");
};

/** Takes the same scratch as others, against the advice, and closes. */
const careless: Process = async ({ open }, at) => {
  const cog = await open(at);
  await cog.tempPath("staging");
  await cog.close();
};

/** Has the name first, and closes after or while another takes it. */
const loseName = (isLate: boolean): Process => async ({ open }, at, port) => {
  const cog = await open(at);
  await cog.tempPath("staging");
  port.say(1);
  if (isLate) port.await(2);
  await cog.close();
  port.say(3);
};

/** Takes the name from another, whose close must leave it alone. */
const takeName = (isLate: boolean): Process => async ({ open }, at, port) => {
  port.await(1);
  const cog = await open(at);
  const mine = `${await cog.tempPath("staging")}/mine`;
  try {
    Deno.writeTextFileSync(mine, "");
  } catch (error) {
    if (isLate) throw error;
    port.await(3); // it was away for a moment, as the documentation says
    Deno.writeTextFileSync(mine, "");
  }
  port.say(2);
  for (let i = 0; isLate && i < 3; i++) Deno.lstatSync(mine);
  port.await(3);
  Deno.lstatSync(mine);
  await cog.close();
};

/** Only sweeps: no file system can create scratch of so long a name. */
const sweep: Process = async ({ open }, at) => {
  const cog = await open(at);
  await cog.tempPath("x".repeat(300)).catch(() => {});
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
const remain: After = () => {};
const remove: After = (file) => Deno.removeSync(file);
const moveDirectory: After = (file) => {
  const directory = file.slice(0, file.lastIndexOf("/"));
  Deno.renameSync(directory, `${directory}.old`);
};
const replace: After = (file) => {
  Deno.writeTextFileSync(`${file}.new`, "");
  Deno.renameSync(`${file}.new`, file);
};

/** Holds the lock for a while, and does something to the file at the end. */
const hold =
  (after: After = remain, signal?: () => AbortSignal): Process =>
  async ({ lock }, at, port) => {
    const release = await lock(`${at}/x.lock`, { signal: signal?.() });
    port.enter();
    Deno.lstatSync(at);
    port.leave();
    after(`${at}/x.lock`);
    release();
  };
const polling = () => new AbortController().signal;

/** Lets a process fail as documented if the directory is gone. */
const unlessGone = (process: Process): Process => async (...args) => {
  try {
    await process(...args);
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
};

const tryToHold: Process = async ({ tryLock }, at, port) => {
  const release = await tryLock(`${at}/x.lock`);
  if (!release) return;
  port.enter();
  Deno.lstatSync(at);
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

/** What killed owners leave. */
function litter(at: string): void {
  const root = `${at}/.cog`;
  const id = "00000000-0000-4000-8000-0000000000";
  for (const name of [`.scratch-${id}aa`, `.trash-${id}bb`]) {
    Deno.mkdirSync(`${root}/${name}/sub`, { recursive: true });
  }
  Deno.writeTextFileSync(`${root}/.scratch-${id}aa.lock`, "");
}

function used(at: string): void {
  Deno.mkdirSync(`${at}/.cog/staging/sub`, { recursive: true });
}

const nothingAt = (name: string) => (at: string) =>
  exists(`${at}/.cog/${name}`) ? `${name} is left` : undefined;

/**
 * Faults put into the library on purpose, and the scenarios that find them:
 *
 * - no look whether a locked file is current, in a try or in a wait: wait-deleted,
 *   wait-deleted-polling
 * - no such look at a new lock file of scratch: nameless, nameless-dir
 * - a sweep without the lock: nameless, nameless-three, nameless-litter
 * - a lock file that goes before its scratch: nameless, nameless-litter
 * - no look at the identity of named scratch before it is moved aside: name-lost
 * - none after, or no return of a stranger's: name-taken
 * - no retry of a race: builds, careless, parents
 * - a sweep of what another's close has moved away: name-taken-swept
 */
export const scenarios: Record<string, Scenario> = {
  "nameless": { processes: [own(), own()], kills: true },
  "nameless-three": { processes: [own(), own(), own()], most: 1 },
  "nameless-litter": {
    processes: [own(), own()],
    setup: litter,
    kills: true,
    most: 1,
  },
  "nameless-dir": {
    processes: [own({ dir: "a" }), own({ dir: "a" })],
    dirs: ["", "a"],
    kills: true,
    most: 1,
  },
  "builds": { processes: [build, build], setup: used, kills: true },
  "build-nameless": { processes: [build, own()], kills: true, most: 1 },
  "careless": {
    processes: [careless, careless],
    end: nothingAt("staging"),
  },
  "careless-used": {
    processes: [careless, careless],
    setup: used,
    end: nothingAt("staging"),
    most: 1,
  },
  "name-lost": {
    processes: [loseName(true), takeName(true)],
    end: nothingAt("staging"),
  },
  "name-taken": {
    processes: [loseName(false), takeName(false)],
    end: nothingAt("staging"),
  },
  "name-taken-swept": {
    processes: [loseName(false), takeName(false), sweep],
    preempted: 0,
  },
  "parents": {
    processes: [own("a/x"), own("a/y")],
    dirs: ["", "a"],
    most: 1,
  },
  "new-project": {
    processes: [
      async ({ open }, at) => await (await open(at)).close(),
      async ({ open }, at) => void await (await open(at)).path("a/b"),
      async ({ open }, at) => void await (await open(at)).filePath("a/c"),
    ],
    end: (at) => exists(`${at}/.cog/a/b`) ? undefined : "a/b is missing",
  },
  "wait": { processes: [hold(), hold(), tryToHold] },
  "wait-polling": {
    processes: [hold(), hold(remain, polling), tryToHold],
    most: 1,
  },
  "wait-deleted": { processes: [hold(remove), hold(remove)] },
  "wait-deleted-polling": {
    processes: [hold(remove), hold(remove, polling), tryToHold],
    most: 1,
  },
  "wait-directory-moved": {
    processes: [
      hold(moveDirectory),
      unlessGone(hold()),
      unlessGone(hold(remain, polling)),
    ],
    most: 1,
  },
  "wait-replaced": { processes: [hold(replace), hold(), tryToHold], most: 1 },
  "wait-killed": {
    processes: [hold(), hold(), hold(remain, polling)],
    kills: true,
    most: 1,
  },
  "give-up": { processes: [hold(), giveUp(true)], variants: 40, most: 1 },
  "close-waiting": { processes: [build, giveUp(false)], variants: 40, most: 0 },
  "close-nameless": { processes: [closeEarly(), own()], variants: 20, most: 0 },
  "close-named": {
    processes: [closeEarly("staging")],
    setup: used,
    variants: 40,
    end: nothingAt("staging"),
  },
};
