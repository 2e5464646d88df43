/** How an explorer and the worker of one process take turns, without messages. */

import { look } from "../../_path.ts";

/** The real ones: a worker replaces those that the library sees. */
const { exchange, load, notify, store, wait } = Atomics;

/** How labels begin of those who say numbers, or wait for one. */
export const SAY = "say ";
export const AWAITS = "waits for ";

/** Where a process stands. */
export enum State {
  Runs,
  New,
  Ready,
  AwaitsRelease,
  AwaitsTimer,
  Ended,
}

/** The answer to a process that must die. Others are numbers of steps. */
const DIE = -1;

/** The size of the part that all share, and of each process's own. */
export const BYTES = 2 ** 20;

/** What a worker plays. */
export interface Play {
  scenario: string;
  directory: string;
  variant: number;
}

/** Whether something exists at the path. */
export const exists = (path: string): boolean => look(path) !== undefined;

export class Port {
  readonly #ints: Int32Array;
  readonly #bytes: Uint8Array;
  readonly shared: Int32Array;
  play!: Play; // of the worker
  /** Steps: the worker's since its turn, or the explorer's not yet told. */
  #steps: string[] = [];
  #answer = 0;
  isLooking = false;
  /** Whether a process of the play is the worker of a place. */
  hasStand = false;
  onKill = () => {};
  /** Called after each pause. */
  onPause = () => {};

  constructor(memory: SharedArrayBuffer, readonly process: number) {
    this.shared = new Int32Array(memory, 0, 24);
    const own = (process + 1) * BYTES;
    this.#ints = new Int32Array(memory, own, 3);
    this.#bytes = new Uint8Array(memory, own + 12, BYTES - 12);
  }

  // Of the worker

  awaitPlay(): void {
    this.#take();
    this.play = this.#read();
  }

  /** Says what comes next, and waits if it must. Throws in a killed process. */
  ask(state: State, label: string): void {
    if (this.#answer !== DIE) {
      this.#steps.push(label);
      if (state === State.Ready && --this.#answer > 0) return;
      this.#stop(state);
      this.#take();
      if (this.#answer !== DIE) return;
      this.onKill();
    }
    throw new Error("killed");
  }

  end(error?: Error): void {
    const isFault = error && this.#answer !== DIE;
    this.#steps.push(isFault ? `${error.stack ?? error}` : "");
    this.#stop(State.Ended);
  }

  #stop(state: State): void {
    this.#write(this.#steps);
    this.#steps = [];
    this.#put(0, state);
  }

  /** Waits for an answer, and takes it. */
  #take(): void {
    // A notification may come late, when its answer was taken already.
    while (load(this.#ints, 1) === 0) wait(this.#ints, 1, 0);
    this.#answer = exchange(this.#ints, 1, 0);
  }

  /** Whether the path exists. A look is no step. */
  sees(path: string): boolean {
    this.isLooking = true;
    const found = exists(path);
    this.isLooking = false;
    return found;
  }

  /** Fails the schedule unless the condition holds. */
  check(condition: boolean, expected: string): void {
    if (!condition) throw new Error(`expected: ${expected}`);
  }

  /** Becomes the only holder of the lock. */
  enter(): void {
    const holder = this.shared[0];
    this.check(holder === 0, `no other holder than process ${holder - 1}`);
    this.shared[0] = this.process + 1;
  }

  leave(): void {
    this.shared[0] = 0;
  }

  /** Tells the others that something has happened, and how. */
  say(whats: number[], how: number = 1): void {
    this.ask(State.Ready, `${SAY}${whats}`);
    for (const what of whats) this.shared[what] = how;
  }

  /** Waits until another has said it. */
  await(what: number): void {
    if (this.shared[what] === 0) {
      this.ask(State.AwaitsRelease, `${AWAITS}${what}`);
    }
  }

  // Of the explorer

  get state(): State {
    return this.#steps.length > 1 ? State.Ready : load(this.#ints, 0);
  }

  get label(): string {
    return this.#steps[0];
  }

  start(play: Play): void {
    this.kill(); // after a fault, it may stand in the last play
    this.#write(play);
    this.#steps = ["begin"];
    store(this.#ints, 0, State.New);
  }

  /** Ends the worker, unless it is stuck. */
  dismiss(): void {
    this.kill();
    this.#write(null);
    this.#put(1, 1);
  }

  /** Lets it take so many steps, or fewer if it must wait, until it stands. */
  go(steps: number): void {
    this.#steps.shift();
    if (this.#steps.length > 0) return;
    store(this.#ints, 0, State.Runs);
    this.#put(1, steps);
    this.awaitStop();
    this.#steps = this.#read();
  }

  /** Waits until the process stands. */
  awaitStop(): void {
    while (this.state === State.Runs) {
      const end = wait(this.#ints, 0, State.Runs, 60_000);
      if (end === "timed-out") throw new Error(`${this.process} is stuck`);
    }
  }

  kill(): void {
    this.#steps = [];
    if (this.state >= State.Ready && this.state < State.Ended) this.go(DIE);
    if (this.shared[0] === this.process + 1) this.leave();
  }

  #put(index: number, value: number): void {
    store(this.#ints, index, value);
    notify(this.#ints, index);
  }

  #read() {
    const bytes = this.#bytes.slice(0, this.#ints[2]);
    return JSON.parse(new TextDecoder().decode(bytes));
  }

  #write(value: unknown): void {
    const text = new TextEncoder().encode(JSON.stringify(value));
    this.#bytes.set(text);
    this.#ints[2] = text.length;
  }
}
