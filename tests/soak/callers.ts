/** Callers of every kind in one process, against a model of the lock. */

import { delay } from "@std/async/delay";
import { resolve } from "@std/path/resolve";
import { type Dir, lock, open, tryLock } from "../../mod.ts";
import {
  blocked,
  exists,
  HAS_PROC,
  isFree,
  openFiles,
  WINDOWS,
} from "../support.ts";
import { type Dice, Journal } from "./journal.ts";

export const callers = new Journal("callers");

/** The signals of callers. */
const signals = new WeakSet<AbortSignal>();
let listeners = 0;

function countListeners(): void {
  const { prototype } = AbortSignal;
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

export async function soakCallers(
  project: string,
  dice: Dice,
  isOver: () => boolean,
): Promise<void> {
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
