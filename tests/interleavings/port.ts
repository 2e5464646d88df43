/** How a scheduler and the worker of one process take turns, without messages. */

/** Where a process stands. */
export enum State {
  Runs,
  Ready,
  AwaitsLock,
  AwaitsTimer,
  Ended,
}

const enum Answer {
  None,
  Go,
  Die,
}

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

  constructor(
    readonly buffers: { own: SharedArrayBuffer; shared: SharedArrayBuffer },
  ) {
    this.#ints = new Int32Array(buffers.own, 0, 4);
    this.#bytes = new Uint8Array(buffers.own, 16);
    this.shared = new Int32Array(buffers.shared);
  }

  // Of the worker

  /** Says what comes next, and waits for the turn. False means to die. */
  ask(state: State, label: string): boolean {
    this.#write(label);
    this.#put(0, state);
    return this.#take() === Answer.Go;
  }

  awaitPlay(): void {
    this.#take();
    this.play = JSON.parse(this.label);
  }

  end(error?: Error): void {
    this.#write(error ? `${error.stack ?? error}` : "");
    this.#put(0, State.Ended);
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
      this.ask(State.AwaitsLock, `waits for event ${what}`);
    }
  }

  // Of the scheduler

  get state(): State {
    return Atomics.load(this.#ints, 0);
  }

  get label(): string {
    return new TextDecoder().decode(this.#bytes.slice(0, this.#ints[2]));
  }

  start(play: Play): void {
    this.#write(JSON.stringify(play));
    this.go();
  }

  /** Ends the worker. */
  dismiss(): void {
    this.#write(JSON.stringify({ scenario: "" }));
    this.#put(1, Answer.Go);
  }

  /** Lets the process take its step, and waits until it stands before the next. */
  go(answer: Answer = Answer.Go): void {
    Atomics.store(this.#ints, 0, State.Runs);
    this.#put(1, answer);
    this.#awaitStop();
  }

  kill(process: number): void {
    this.go(Answer.Die);
    if (this.shared[0] === process + 1) this.leave();
  }

  #awaitStop(): void {
    while (this.state === State.Runs) {
      if (Atomics.wait(this.#ints, 0, State.Runs, 10_000) !== "timed-out") {
        continue;
      }
      throw new Error("a process takes no step for ten seconds");
    }
  }

  #put(index: number, value: number): void {
    Atomics.store(this.#ints, index, value);
    Atomics.notify(this.#ints, index);
  }

  /** Waits for an answer, and takes it. */
  #take(): Answer {
    // A notification may come late, when its answer was taken already.
    while (Atomics.load(this.#ints, 1) === Answer.None) {
      Atomics.wait(this.#ints, 1, Answer.None);
    }
    return Atomics.exchange(this.#ints, 1, Answer.None);
  }

  #write(text: string): void {
    const { written } = new TextEncoder().encodeInto(text, this.#bytes);
    Atomics.store(this.#ints, 2, written);
  }
}
