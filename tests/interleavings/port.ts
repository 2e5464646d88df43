/** How a scheduler and the worker of one process take turns, without messages. */

import { quietly } from "../../_error.ts";

/** Where a process stands. */
export enum State {
  Runs,
  New,
  Ready,
  AwaitsLock,
  AwaitsEvent,
  AwaitsTimer,
  Ended,
}

/** The answer to a process that must die. Other ones are numbers of steps. */
const DIE = -1;

/** What a worker plays. */
export interface Play {
  scenario: string;
  process: number;
  directory: string;
  variant: number;
}

export class Port {
  readonly #ints: Int32Array;
  readonly #bytes: Uint8Array;
  readonly shared: Int32Array;
  play!: Play;
  /** Of the worker: its last steps. Of the scheduler: the next ones. */
  #steps: string[] = [];
  /** How many steps the worker may take. */
  #allowed = 0;
  isLooking = false;

  constructor(
    readonly buffers: { own: SharedArrayBuffer; shared: SharedArrayBuffer },
  ) {
    this.#ints = new Int32Array(buffers.own, 0, 3);
    this.#bytes = new Uint8Array(buffers.own, 12);
    this.shared = new Int32Array(buffers.shared);
  }

  // Of the worker

  awaitPlay(): void {
    this.#take();
    this.play = this.#read();
  }

  /** Says what comes next, and waits for the turn. False means to die. */
  ask(state: State, label: string): boolean {
    this.#steps.push(label);
    if (state === State.Ready && --this.#allowed > 0) return true;
    this.#stop(state);
    this.#take();
    return this.#allowed !== DIE;
  }

  end(error?: Error): void {
    this.#steps.push(error ? `${error.stack ?? error}` : "");
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
    while (Atomics.load(this.#ints, 1) === 0) Atomics.wait(this.#ints, 1, 0);
    this.#allowed = Atomics.exchange(this.#ints, 1, 0);
  }

  /** Whether the path exists. To look is no step. */
  sees(path: string): boolean {
    this.isLooking = true;
    const found = quietly(() => Deno.lstatSync(path));
    this.isLooking = false;
    return found !== undefined;
  }

  /** Fails the schedule unless the condition holds. */
  check(condition: boolean, expected: string): void {
    if (!condition) throw new Error(`expected: ${expected}`);
  }

  /** Becomes the only holder of the lock. */
  enter(): void {
    const holder = this.shared[0];
    this.check(holder === 0, `no other holder than process ${holder - 1}`);
    this.shared[0] = this.play.process + 1;
  }

  leave(): void {
    this.shared[0] = 0;
  }

  /** Tells the others that something has happened. */
  say(what: number): void {
    this.shared[what] = 1;
  }

  /** Waits until another has said it. */
  await(what: number): void {
    while (this.shared[what] === 0) {
      const goesOn = this.ask(State.AwaitsEvent, `waits for event ${what}`);
      this.check(goesOn, "a process that may go on");
    }
  }

  // Of the scheduler

  get state(): State {
    return this.#steps.length > 1 ? State.Ready : Atomics.load(this.#ints, 0);
  }

  get label(): string {
    return this.#steps[0];
  }

  start(play: Play): void {
    this.play = play;
    this.#write(play);
    this.#steps = ["begin"];
    Atomics.store(this.#ints, 0, State.New);
  }

  /** Ends the worker. */
  dismiss(): void {
    this.#write({ scenario: "" });
    this.#put(1, 1);
  }

  /**
   * Lets the process take its step, and waits until it stands before the next one.
   * It takes so many at once as long as it need not wait.
   */
  go(steps: number): void {
    this.#steps.shift();
    if (this.#steps.length > 0) return;
    Atomics.store(this.#ints, 0, State.Runs);
    this.#put(1, steps);
    while (this.state === State.Runs) {
      const end = Atomics.wait(this.#ints, 0, State.Runs, 10_000);
      if (end === "timed-out") throw new Error("a step takes ten seconds");
    }
    this.#steps = this.#read();
  }

  kill(): void {
    if (this.state === State.New) Atomics.store(this.#ints, 0, State.Ended);
    if (this.state !== State.Ended) this.go(DIE);
    if (this.shared[0] === this.play.process + 1) this.leave();
  }

  #put(index: number, value: number): void {
    Atomics.store(this.#ints, index, value);
    Atomics.notify(this.#ints, index);
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
