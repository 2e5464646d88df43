/** Callers of every kind in one process, against a model of the lock. */

import { delay } from "@std/async/delay";
import { resolve } from "@std/path/resolve";
import { type Dir, lock, open } from "../../mod.ts";
import { HAS_PROC, openFiles, until, WINDOWS } from "../support.ts";
import { type Dice, isOver, Journal, makeDice } from "./journal.ts";

export const callers = new Journal("callers");

/** One call, and the outcomes that it may have. */
class Caller {
  promise: Promise<Disposable | null> | undefined;
  /** The errors, or classes of errors, with which the call may reject. */
  readonly reasons: unknown[] = [];
  /** Aborts the signal, or else closes the handle. */
  disturb = () => {};

  constructor(readonly name: string, readonly isWaiter: boolean) {}

  /** Exact to the microtask: a reason counts until the promise settles. */
  get isPending(): boolean {
    return !this.promise || Deno.inspect(this.promise).includes("<pending>");
  }

  get isServed(): boolean {
    return this.isWaiter && this.isPending && this.reasons.length === 0;
  }

  giveUp<T>(reason: T): T {
    callers.note(this.name, "gives up");
    if (this.isPending) this.reasons.push(reason);
    return reason;
  }
}

/** Some callers of one lock, until all are done. */
class Round {
  /** In the order in which they asked. */
  readonly #callers: Caller[] = [];
  readonly #ends: Promise<void>[] = [];
  #holder: Caller | undefined;

  constructor(readonly file: string, readonly dice: Dice) {}

  async play(handles: Dir[]): Promise<void> {
    const { below, chance, pick } = this.dice;
    for (const cog of handles) {
      const own = makeDice(this.dice.fork());
      this.#ends.push(chance(0.2) ? this.#intrude(own) : this.#ask(cog, own));
      const { disturb } = pick(this.#callers);
      if (chance(0.1)) disturb();
      if (chance(0.1)) queueMicrotask(disturb);
      if (chance(0.2)) setTimeout(disturb, below(30));
      if (chance(0.15)) await null;
      if (chance(0.25)) await delay(below(8));
    }
    for (const end of this.#ends) await end; // some are added meanwhile
    for (const cog of handles) await cog.close();
    (await lock(this.file))();
    await until(() => !HAS_PROC || !openFiles().join().includes(this.file));
  }

  #enter(kind: string): Caller {
    const name = `${kind} ${this.#callers.length}`;
    const caller = new Caller(name, kind === "lock");
    callers.note(caller.name, "calls");
    this.#callers.push(caller);
    return caller;
  }

  /** Does not use the library. */
  async #intrude(dice: Dice): Promise<void> {
    const caller = this.#enter("stranger");
    using file = Deno.openSync(this.file, { write: true, create: true });
    if (file.tryLockSync(true)) await this.#hold(caller, dice);
  }

  async #ask(cog: Dir, dice: Dice): Promise<void> {
    const { chance, pick } = dice;
    const caller = this.#enter(pick(["lock", "lock", "lock", "tryLock"]));
    const { isWaiter, reasons } = caller;
    const controller = new AbortController();
    const signal = isWaiter && chance(0.5) ? controller.signal : undefined;
    let isClosed = false;
    let waits = 0;
    caller.disturb = () => {
      if (signal) return controller.abort(caller.giveUp(new Error()));
      caller.giveUp(Deno.errors.BadResource);
      isClosed = true;
      if (this.#holder === caller) this.#holder = undefined;
      cog.close();
    };
    const onWait = () => {
      callers.note(caller.name, "waits");
      const isFirst = ++waits === 1 && caller.isServed;
      if (!isFirst) callers.violated(caller.name, "no onWait", "one");
      if (chance(0.2)) throw caller.giveUp(new Error());
    };
    try {
      caller.promise = isWaiter ? cog.lock({ signal, onWait }) : cog.tryLock();
      const release = await caller.promise;
      if (!release) return callers.note(caller.name, "null");
      const first = this.#callers.find((it) => it === caller || it.isServed);
      if (first !== caller || reasons.length > 0) {
        callers.violated(caller.name, "another's turn", "a grant");
      }
      if (isClosed) return; // the close frees the lock
      await this.#hold(caller, dice);
      if (chance(0.5)) release[Symbol.dispose]();
      else await cog.close();
    } catch (error) {
      callers.note(caller.name, "rejections");
      const { constructor } = error as Error;
      if (reasons.some((it) => it === error || it === constructor)) return;
      callers.violated(caller.name, "a reason of its own", error);
    }
  }

  async #hold(caller: Caller, dice: Dice): Promise<void> {
    const { below, chance, pick } = dice;
    callers.note(caller.name, "grants");
    if (this.#holder) {
      callers.violated(caller.name, "one holder", `also ${this.#holder.name}`);
    }
    this.#holder = caller;
    await delay(chance(0.05) ? 105 : below(pick([1, 4, 20])));
    if (this.#holder !== caller) return; // its handle has closed
    this.#holder = undefined;
    callers.note(caller.name, "releases");
    if (WINDOWS || chance(0.8)) return;
    callers.note(caller.name, "deletions");
    Deno.removeSync(this.file);
    this.#ends.push(this.#intrude(dice)); // a stranger may lock the new file first
  }
}

/** Three locks at a time, since two of them may wait in the system. */
export async function soakCallers(dir: string, dice: Dice): Promise<void> {
  await Promise.all(["a", "b", "c"].map(async (name) => {
    const own = makeDice(dice.fork());
    while (!isOver()) {
      callers.note(name, "rounds");
      const projects = Array(5 + own.below(20)).fill(resolve(dir, name));
      const handles = await Promise.all(projects.map(open));
      const round = new Round(resolve(handles[0].root, "cog.lock"), own);
      await callers.soon(name, "the round to end", round.play(handles));
    }
  }));
}
