/**
 * Random trouble for the library, for as long as asked. The same seed makes the
 * same choices, but the timing stays the machine's.
 *
 *     deno task soak [SECONDS] [SEED]
 */

import { delay } from "@std/async/delay";
import { resolve } from "@std/path/resolve";
import { type Dir, lock, open, tryLock } from "../mod.ts";
import {
  blocked,
  exists,
  has,
  HAS_PROC,
  isFree,
  names,
  openFiles,
  Peer,
  scene,
  script,
  WINDOWS,
} from "./support.ts";

const [seconds = "10", seed = `${Math.floor(Math.random() * 2 ** 32)}`] =
  Deno.args;
if (
  Deno.args.length > 2 || !/^\d{1,9}(\.\d+)?$/.test(seconds) ||
  !/^\d+$/.test(seed) || Number(seed) >= 2 ** 32
) {
  console.error("usage: deno task soak [SECONDS] [SEED]");
  Deno.exit(2);
}
console.log(`seed ${seed}`);
const end = performance.now() + Number(seconds) * 1000;
const isOver = () => performance.now() >= end;

/** Mulberry32. Other processes get the source of this function. */
function makeDice(seed: number) {
  const next = () => {
    seed = seed + 0x6D2B79F5 | 0;
    let t = Math.imul(seed ^ seed >>> 15, seed | 1);
    t ^= t + Math.imul(t ^ t >>> 7, t | 61);
    return ((t ^ t >>> 14) >>> 0) / 2 ** 32;
  };
  const below = (limit: number) => Math.floor(next() * limit);
  const chance = (probability: number) => next() < probability;
  const pick = <T>(all: T[]): T => all[below(all.length)];
  return { below, chance, pick };
}
type Dice = ReturnType<typeof makeDice>;

const failed = Promise.withResolvers<never>();

/** What one of the parts did. */
class Journal {
  readonly counts: Record<string, number> = {};
  readonly #events: string[] = [];

  constructor(readonly part: string) {}

  count(what: string): void {
    this.counts[what] = (this.counts[what] ?? 0) + 1;
  }

  note(event: string): void {
    this.#events.push(`  ${performance.now().toFixed(1)} ${event}`);
    if (this.#events.length > 20) this.#events.shift();
  }

  /** Ends the run with the story, if it is the first. */
  violated(expected: string, seen: unknown): void {
    const value = typeof seen === "string" ? seen : Deno.inspect(seen);
    const story = [`expected: ${expected}`, `seen: ${value}`, ...this.#events];
    failed.reject(`in ${this.part}\n${story.join("\n")}`);
  }

  /** Waits, but not for ever. */
  async soon<T>(expected: string, promise: Promise<T>): Promise<T> {
    const late = () => this.violated(expected, "nothing of that for 10 s");
    const timer = setTimeout(late, 10_000);
    return await promise.finally(() => clearTimeout(timer));
  }
}

// --- Callers in one process, against a model

const callers = new Journal("callers");

/** The signals of callers, and those made of them. */
const signals = new WeakSet<AbortSignal>();
let listeners = 0;

function countListeners(): void {
  const { any, prototype } = AbortSignal;
  AbortSignal.any = (sources) => {
    const signal = any.call(AbortSignal, sources);
    if (sources.some((it) => signals.has(it))) signals.add(signal);
    return signal;
  };
  const steps = { addEventListener: 1, removeEventListener: -1 };
  for (const name of ["addEventListener", "removeEventListener"] as const) {
    const original = prototype[name];
    prototype[name] = function (...args: unknown[]) {
      if (signals.has(this)) listeners += steps[name];
      Reflect.apply(original, this, args);
    };
  }
}

function newController(): AbortController {
  const controller = new AbortController();
  signals.add(controller.signal);
  return controller;
}
const forever = newController();

/** A stranger opens the file itself, without the library. */
function makePlan({ below, chance, pick }: Dice) {
  const oneOf = (words: string) => pick(words.split(", "));
  return {
    kind: oneOf("lock, lock, lock, lock, lock, tryLock, stranger"),
    place: below(3),
    handle: chance(0.7) ? below(3) : -1,
    signal: oneOf("none, none, own, own, group, forever"),
    abort: oneOf("before, same tick, microtask, timer, timer, never"),
    timer: below(30),
    onWait: oneOf("throw, abort, release, again, close, , , , "),
    hold: chance(0.05) ? 105 : below(pick([1, 4, 20])),
    last: WINDOWS ? "" : oneOf("delete, replace, , , , , , "),
  };
}
type Plan = ReturnType<typeof makePlan>;

interface Place {
  path: string;
  holder: Caller | undefined;
  /** In the order in which they asked. */
  waiters: Set<Caller>;
  /** Whether a closed handle may have left a wait that goes on. */
  isHaunted: boolean;
}

class Round {
  readonly callers: Caller[] = [];
  readonly group = newController();
  readonly closings = new Map<Dir, Promise<void>>();
  readonly places: Place[];

  constructor(readonly dirs: Dir[]) {
    this.places = ["cog.lock", "a.lock", "b.lock"].map((name) => {
      const path = resolve(dirs[0].root, name);
      return { path, holder: undefined, waiters: new Set(), isHaunted: false };
    });
  }

  ask(plan: Plan): void {
    const caller = new Caller(this, plan);
    this.callers.push(caller);
    caller.ask();
  }

  abort(controller: AbortController, reason: Error): void {
    for (const caller of this.callers) {
      if (caller.controller === controller) caller.giveUp(reason);
    }
    controller.abort(reason);
  }

  close(dir: Dir): void {
    for (const caller of this.callers) {
      if (caller.dir === dir) caller.lose();
    }
    this.closings.set(dir, dir.close());
  }

  /** Only those who cannot give up wait in the operating system. */
  checkBlocked(): void {
    const places = this.places.filter(({ isHaunted, waiters }) =>
      isHaunted || [...waiters].some(({ controller }) => !controller)
    );
    const most = Math.min(places.length, 2);
    // The list repeats some if it changes while it is read.
    for (let reads = 0; reads < 10; reads++) {
      if (blocked(Deno.pid) <= most) return;
    }
    callers.violated(`${most} waits in the system at most`, "more");
  }

  async isQuiet(): Promise<boolean> {
    const { root } = this.dirs[0];
    if (HAS_PROC && openFiles().some((it) => it.startsWith(root))) return false;
    const all = this.places.map(({ path }) => tryLock(path));
    const releases = await Promise.all(all);
    for (const release of releases) release?.();
    return releases.every((release) => release !== null);
  }
}

/** Stands for the error of a closed handle. */
const CLOSED = Symbol("closed");

class Caller {
  readonly place: Place;
  readonly dir: Dir | undefined;
  readonly controller: AbortController | undefined;
  done: Promise<void> | undefined;
  readonly #name: string;
  /** Why it is given up, if it is. */
  readonly #reasons: unknown[] = [];
  #promise: Promise<(() => void) | null> | undefined;
  #release = () => {};
  #isCalling = false;
  #heard = 0;
  #mustHear = false;
  #mayTry = false;

  constructor(readonly round: Round, readonly plan: Plan) {
    const { kind, place, handle, signal } = plan;
    const { callers, dirs, group, places } = round;
    this.#name = `caller ${callers.length}`;
    this.place = places[place];
    if (place === 0 && kind !== "stranger") this.dir = dirs[handle];
    if (kind !== "lock" || signal === "none") return;
    this.controller = { group, forever }[signal] ?? newController();
  }

  ask(): void {
    const { dir, controller, place: { holder, waiters } } = this;
    const { kind, signal, abort, timer } = this.plan;
    this.#note(JSON.stringify(this.plan));
    const when = controller && signal === "own" ? abort : "never";
    const giveUp = () => this.#abort();
    if (when === "before") controller!.abort(new Error(this.#name));
    if (controller?.signal.aborted) this.giveUp(controller.signal.reason);
    if (dir && this.round.closings.has(dir)) this.giveUp(CLOSED);
    this.#mustHear = kind === "lock" && !!holder &&
      holder.plan.kind !== "stranger";
    this.#mayTry = !holder && ![...waiters].some((it) => it.isServed());
    if (kind === "lock") waiters.add(this);

    this.#isCalling = true;
    this.#promise = this.#call();
    this.#isCalling = false;
    this.done = this.#settle(this.#promise);
    if (when === "same tick") giveUp();
    if (when === "microtask") queueMicrotask(giveUp);
    if (when === "timer") setTimeout(giveUp, timer);
  }

  #call(): Promise<(() => void) | null> {
    const { dir, controller, place: { path }, plan: { kind } } = this;
    if (kind === "stranger") return this.#intrude(path);
    if (kind === "tryLock") return dir?.tryLock() ?? tryLock(path);
    const options = { signal: controller?.signal, onWait: () => this.#hear() };
    return dir?.lock(options) ?? lock(path, options);
  }

  async #intrude(path: string): Promise<(() => void) | null> {
    for (let tries = 0; tries < 30; tries++) {
      const opened = new DisposableStack();
      const how = { read: true, write: true, create: true };
      const file = opened.use(Deno.openSync(path, how));
      if (file.tryLockSync(true)) return () => opened.dispose();
      opened.dispose();
      await delay(1);
    }
    return null;
  }

  #hear(): void {
    const { onWait } = this.plan;
    this.#note("hears of the wait");
    this.#heard++;
    if (this.#isCalling) this.#violated("no onWait within the call", "one");
    if (this.#heard > 1) this.#violated("one onWait", `${this.#heard}`);
    if (!this.isServed()) this.#violated("no onWait after the end", "one");
    if (onWait === "release") this.place.holder?.letGo();
    if (onWait === "close" && this.dir) this.round.close(this.dir);
    if (onWait === "abort" && this.plan.signal === "own") this.#abort();
    if (onWait === "again") {
      this.round.ask({ ...this.plan, onWait: "", signal: "none" });
    }
    if (onWait !== "throw") return;
    const error = new Error(`onWait of ${this.#name}`);
    this.giveUp(error);
    throw error;
  }

  #abort(): void {
    this.round.abort(this.controller!, new Error(this.#name));
  }

  giveUp(reason: unknown): void {
    if (!this.#isPending()) return;
    this.#note("is given up");
    this.#reasons.push(reason);
  }

  /** Its handle closes. */
  lose(): void {
    if (this.place.holder === this) this.place.holder = undefined;
    if (this.plan.kind === "lock" && !this.controller) {
      this.place.isHaunted = true;
    }
    this.giveUp(CLOSED);
  }

  isServed(): boolean {
    return this.#reasons.length === 0 && this.#isPending();
  }

  /** Exact to the microtask: what comes before the promise settles counts. */
  #isPending(): boolean {
    return !this.#promise || Deno.inspect(this.#promise).includes("<pending>");
  }

  async #settle(promise: Promise<(() => void) | null>): Promise<void> {
    try {
      const release = await promise;
      if (!release) return this.#note("gets null");
      this.#release = release;
      this.#granted();
    } catch (error) {
      this.#rejected(error);
    } finally {
      this.place.waiters.delete(this);
    }
    if (this.place.holder !== this) return;
    if (this.plan.hold > 0) await delay(this.plan.hold);
    this.letGo();
  }

  #rejected(error: unknown): void {
    this.#note("rejects");
    callers.count("given up");
    const wasClosed = error instanceof Deno.errors.BadResource;
    if (this.#reasons.includes(wasClosed ? CLOSED : error)) return;
    this.#violated("a reason of its own", error);
  }

  #granted(): void {
    const { place: { holder, waiters }, plan: { kind } } = this;
    this.#note("gets the lock");
    callers.count("grants");
    if (this.#reasons.length > 0) this.#violated("a rejection", "a grant");
    if (this.dir && this.round.closings.has(this.dir)) return; // frees it
    this.place.holder = this;
    if (holder) this.#violated("one holder", `also ${holder.#name}`);
    const first = [...waiters].find((it) => it === this || it.isServed());
    if (kind === "lock" && first !== this) {
      this.#violated(`${first!.#name} first`, "a grant");
    }
    if (kind === "tryLock" && !this.#mayTry) this.#violated("null", "a grant");
    if (this.#mustHear && this.#heard === 0) this.#violated("onWait", "none");
    this.#checkLocked();
  }

  /** Releases the lock, a second time too. */
  letGo(): void {
    const { path, holder } = this.place;
    if (holder === this) {
      this.#note("lets go");
      this.#checkLocked();
      this.place.holder = undefined;
      const { last } = this.plan;
      if (last) callers.count("deletions");
      if (last === "delete") Deno.removeSync(path);
      if (last === "replace") {
        Deno.writeTextFileSync(`${path}.new`, "");
        Deno.renameSync(`${path}.new`, path);
      }
      if (last) { // for then a stranger may be first
        const plan = { ...this.plan, kind: "stranger", last: "" };
        this.round.ask({ ...plan, hold: this.plan.timer });
      }
    }
    this.#release();
  }

  #checkLocked(): void {
    const { path } = this.place;
    if (exists(path) && !isFree(path)) return;
    this.#violated("the file at the path to be locked", "it is not");
  }

  #violated(expected: string, seen: unknown): void {
    const plan = JSON.stringify(this.plan);
    callers.violated(`for ${this.#name}, ${plan}: ${expected}`, seen);
  }

  #note(event: string): void {
    callers.note(`${this.#name} ${event}`);
  }
}

async function soakCallers(project: string, dice: Dice): Promise<void> {
  countListeners();
  while (!isOver()) {
    callers.count("rounds");
    callers.note("a new round");
    const dirs = [1, 2, 3].map(() => open(project));
    await soakRound(new Round(await Promise.all(dirs)), dice);
  }
}

async function soakRound(round: Round, dice: Dice): Promise<void> {
  const { below, chance, pick } = dice;
  const watch = HAS_PROC && setInterval(() => round.checkBlocked(), 3);
  for (let calls = 5 + below(30); calls > 0; calls--) {
    round.ask(makePlan(dice));
    if (chance(0.02)) round.close(pick(round.dirs));
    if (chance(0.03)) round.abort(round.group, new Error("group"));
    if (chance(0.15)) await null;
    if (chance(0.25)) await delay(below(8));
  }
  for (const { done } of round.callers) { // also those who come meanwhile
    await callers.soon("each call to settle", done!);
  }
  for (const dir of round.dirs) round.close(dir);
  const closed = Promise.all(round.closings.values());
  await callers.soon("each handle to close", closed);
  const quiet = (async () => {
    while (!await round.isQuiet()) await delay(1);
  })();
  await callers.soon("all to be free, and no file to be open", quiet);
  if (watch) clearInterval(watch);
  if (listeners === 0) return;
  callers.violated("no listener left on a signal", `${listeners}`);
}

// --- Other processes, which are killed and stopped

let hasEnded = false;
const peers = new Set<Peer>();
const killed = new Set<number>();

/** Where one process works after the other. */
class Post {
  #peer!: Peer;
  #listening!: Promise<void>;
  #mayEnd = false;
  /** What must be gone after the process that ended by itself. */
  #gone: string | undefined;

  constructor(
    readonly journal: Journal,
    readonly start: (seed: string) => Peer,
    readonly dice: Dice,
  ) {
    this.#fill();
  }

  #fill(): void {
    if (hasEnded) throw new Error("the run has ended");
    this.#peer = this.start(`${this.dice.below(2 ** 32)}`);
    peers.add(this.#peer);
    killed.delete(this.#peer.pid);
    this.#mayEnd = false;
    this.#gone = undefined;
    this.#note("starts");
    this.#listening = this.#listen();
  }

  async #listen(): Promise<void> {
    try {
      while (true) this.#hear(await this.#peer.line());
    } catch (error) {
      if (!this.#mayEnd) this.#violated("it goes on", error);
    }
  }

  #hear(line: string): void {
    const [what, whose] = line.split(" ");
    if (what === "alive") return;
    this.#note(line);
    if (what === "exit") {
      this.#mayEnd = true;
      this.#gone = whose;
    } else this.journal.count(what);
    if (what !== "found" || killed.has(Number(whose))) return;
    this.#violated("one holder", `also ${whose}, who was not killed`);
  }

  async refill(): Promise<void> {
    const gone = this.#gone;
    if (gone === undefined) return;
    await this.finish();
    if (exists(gone)) this.#violated(`it removes ${gone}`, "it did not");
    this.#fill();
  }

  async kill(): Promise<void> {
    this.#note("is killed");
    this.journal.count("kills");
    this.#mayEnd = true;
    killed.add(this.#peer.pid);
    this.#peer.kill();
    await this.#end();
    this.#fill();
  }

  stop(ms: number): void {
    this.#note(`is stopped for ${ms} ms`);
    this.journal.count("stops");
    const peer = this.#peer;
    peer.kill("SIGSTOP");
    setTimeout(() => peer.kill("SIGCONT"), ms);
  }

  /** Asks it to end, which it does unless it starves. */
  async finish(): Promise<void> {
    this.#note("is asked to end");
    this.#mayEnd = true;
    this.#peer.kill("SIGCONT");
    await this.#peer.go().catch(() => {}); // it may have ended
    await this.journal.soon(`${this.#peer.pid} ends`, this.#listening);
    await this.#end();
    const { success } = await this.#peer.ended();
    if (!success) this.#violated("it ends well", await this.#peer.ended());
  }

  async #end(): Promise<void> {
    const ended = this.#peer[Symbol.asyncDispose]();
    await this.journal.soon(`${this.#peer.pid} ends`, ended);
    peers.delete(this.#peer);
  }

  #violated(expected: string, seen: unknown): void {
    this.journal.violated(`of ${this.#peer.pid}: ${expected}`, seen);
  }

  #note(event: string): void {
    this.journal.note(`${this.#peer.pid} ${event}`);
  }
}

async function trouble(
  journal: Journal,
  { below, chance, pick }: Dice,
  starts: ((seed: string) => Peer)[],
): Promise<void> {
  const posts = starts.map((start) =>
    new Post(journal, start, makeDice(below(2 ** 32)))
  );
  while (!isOver()) {
    await delay(20 + below(200));
    for (const post of posts) await post.refill();
    const post = pick(posts);
    if (chance(0.5)) await post.kill();
    else post.stop(below(300));
  }
  await Promise.all(posts.map((post) => post.finish()));
}

const PEER = `
  const [path, own, seed] = args;
  const { below, chance, pick } = (${makeDice})(Number(seed));
  const pause = (ms) => new Promise((resume) => setTimeout(resume, ms));
  let isOver = false;
  heard().then(() => isOver = true);
  Deno.unrefTimer(setInterval(() => console.log("alive"), 5_000));
`;

/** The witness is a link that names the holder: it is never there without. */
const HOLD = `
  ${PEER}
  async function hold() {
    try {
      Deno.symlinkSync(String(Deno.pid), own);
    } catch (error) {
      if (!(error instanceof Deno.errors.AlreadyExists)) throw error;
      console.log("found", Deno.readLinkSync(own));
      Deno.removeSync(own);
      Deno.symlinkSync(String(Deno.pid), own);
    }
    console.log("grants");
    await pause(chance(0.1) ? 105 : below(5));
    Deno.removeSync(own);
    const last = below(10);
    if (last < 2) console.log("deletions");
    if (last === 0) Deno.removeSync(path);
    if (last === 1) {
      Deno.writeTextFileSync(path + Deno.pid, "");
      Deno.renameSync(path + Deno.pid, path);
    }
  }
`;

const LOCK = `
  ${HOLD}
  async function loop() {
    while (!isOver) {
      const signal = makeSignal();
      try {
        using _lock = await lock(path, { signal });
        await hold();
      } catch (error) {
        if (error !== signal?.reason) throw error;
        console.log("aborts");
      }
      if (chance(0.5)) await pause(below(20));
    }
  }
  await Promise.all([loop(), loop()]);
`;
const PATIENT = `const makeSignal = () => undefined; ${LOCK}`;
const IMPATIENT =
  `const makeSignal = () => AbortSignal.timeout(below(200)); ${LOCK}`;

const POLL = `
  ${HOLD}
  while (!isOver) {
    using file = Deno.openSync(path, { write: true, create: true });
    if (file.tryLockSync(true)) {
      const there = await Deno.stat(path).catch(() => undefined);
      if (there?.ino === file.statSync().ino) await hold();
    }
    file.unlockSync();
    await pause(100);
  }
`;

/** flock(1) does not look whether the file is still the one at the path. */
const FLOCK = `
  for turn in 1 2 3 4 5 6 7 8 9 10; do
    exec 9>>"$0"
    if flock -w 5 9 && [ /dev/fd/9 -ef "$0" ]; then
      if ! ln -s $$ "$1" 2>/dev/null; then
        echo "found $(readlink "$1")"
        ln -sfn $$ "$1"
      fi
      echo grants
      sleep 0.005
      rm "$1"
    else
      echo alive
    fi
    exec 9>&-
  done
  echo exit "$0.none"
`;

async function soakProcesses(dir: string, dice: Dice): Promise<void> {
  const paths = [resolve(dir, "lock"), resolve(dir, "witness")];
  const start = (code: string) => (seed: string) =>
    script(code, [...paths, seed]);
  const flock = () => new Peer("sh", ["-c", FLOCK, ...paths]);
  await trouble(processes, dice, [
    start(PATIENT),
    start(PATIENT),
    start(IMPATIENT),
    start(POLL),
    has("flock") ? flock : start(IMPATIENT),
  ]);
}
const processes = new Journal("processes");

const OWN = `
  ${PEER}
  async function loop(mine) {
    while (!isOver) {
      await using cog = await open(path);
      const name = pick([undefined, undefined, mine, "deep/" + mine, "shared"]);
      const release = name === "shared" && await cog.lock();
      const scratch = await cog.tempPath(name);
      console.log("scratches");
      for (let files = 1; files <= 1 + below(6); files++) {
        Deno.writeTextFileSync(scratch + "/" + files, scratch + Deno.pid);
        await pause(below(8));
        const seen = [...Deno.readDirSync(scratch)].length;
        if (seen !== files) throw new Error(scratch + " has " + seen + " files");
        for (let file = 1; file <= files; file++) {
          const text = Deno.readTextFileSync(scratch + "/" + file);
          if (text !== scratch + Deno.pid) throw new Error(text);
        }
      }
      if (release) {
        if (chance(0.5)) release(); // the next one then wipes it, or did
        await pause(below(8));
        continue;
      }
      if (chance(0.02)) {
        console.log("exit", scratch);
        Deno.exit();
      }
      await cog.close();
      const left = await Deno.lstat(scratch).catch(() => undefined);
      if (left) throw new Error("close left " + scratch);
    }
  }
  await Promise.all([loop(own + 1), loop(own + 2)]);
`;

async function soakScratch(project: string, dice: Dice): Promise<void> {
  const start = (own: string) => (seed: string) =>
    script(OWN, [project, own, seed]);
  await trouble(scratch, dice, [start("x"), start("y"), start("z")]);
  const cog = await open(project);
  await cog.tempPath("deep/last"); // sweeps both directories
  await cog.close();
  const left = [...names(cog.root), ...names(resolve(cog.root, "deep"))]
    .filter((name) => name.startsWith(".scratch-"));
  if (left.length > 0) scratch.violated("nothing left to sweep", left);
}
const scratch = new Journal("scratch");

// --- The run

globalThis.addEventListener("unhandledrejection", (event) => {
  event.preventDefault();
  callers.violated("no unhandled rejection", event.reason);
});
Deno.addSignalListener("SIGINT", () => failed.reject("interrupted"));

async function soak(root: string): Promise<void> {
  const dice = makeDice(Number(seed));
  const begin = (
    { part }: Journal,
    work: (dir: string, dice: Dice) => Promise<void>,
  ) => {
    const dir = resolve(root, part);
    Deno.mkdirSync(dir);
    return work(dir, makeDice(dice.below(2 ** 32)));
  };
  const parts = [begin(callers, soakCallers)];
  if (WINDOWS) console.log("skipped on Windows: processes and scratch");
  else {
    parts.push(begin(processes, soakProcesses), begin(scratch, soakScratch));
  }
  await Promise.race([failed.promise, Promise.all(parts)]);
}

const { path: root, [Symbol.dispose]: remove } = scene();
const error = await soak(root).then(() => undefined, (error) => error);
hasEnded = true;
for (const peer of peers) peer.kill();
const ended = Promise.allSettled([...peers].map((peer) => peer.ended()));
await Promise.race([ended, delay(3_000)]);
remove();
for (const { part, counts } of [callers, processes, scratch]) {
  const numbers = Object.entries(counts).map(([what, many]) =>
    `${many} ${what}`
  );
  console.log(`${part}: ${numbers.join(", ")}`);
}
if (error === undefined) {
  console.log("0 violations");
  Deno.exit(0);
}
console.error(`seed ${seed}`);
console.error(error);
Deno.exit(1);
