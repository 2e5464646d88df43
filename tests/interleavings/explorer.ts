/**
 * A worker that plays scenarios in all orders in which their processes can take
 * their steps, one after the other. It imports nothing that starts a program: one
 * that starts has all open files for a moment, and their locks.
 */

import { quietly } from "../../_error.ts";
import { open } from "../../mod.ts";
import { Port, State } from "./port.ts";
import { type Scenario, scenarios } from "./scenarios.ts";

/** How many preemptions a kill counts for. */
const KILL = 2;

/** More steps than a schedule has. */
const MANY = 3000;

/** All schedules with so many preemptions at most, or the one of these choices. */
export interface Task {
  name: string;
  preemptions: number;
  only?: number[];
}

export interface Result {
  schedules: number;
  /** The story of the first fault. */
  fault?: string;
}

const MEMORY_DISK = "/dev/shm";
const root = Deno.makeTempDirSync({
  dir: quietly(() => Deno.statSync(MEMORY_DISK)) && MEMORY_DISK,
  prefix: "dotcog-",
});
const shared = new SharedArrayBuffer(32); // of all processes
const ports: Port[] = [];
let played = 0;

async function explore(task: Task): Promise<Result> {
  const { processes } = scenarios[task.name];
  while (ports.length < processes.length) ports.push(await hire());
  let choices: number[] | undefined = task.only ?? [];
  let fault: string | undefined;
  let schedules = 0;
  for (; choices && !fault; schedules++) {
    const run: Run = new Run(task, choices);
    fault = await run.play(`${root}/${played++}`);
    choices = task.only ? undefined : run.next();
  }
  return { schedules, fault };
}

async function hire(): Promise<Port> {
  const port = new Port({ own: new SharedArrayBuffer(65536), shared });
  const url = import.meta.resolve("./worker.ts");
  const worker = new Worker(url, { type: "module" });
  worker.postMessage(port.buffers);
  await new Promise((resolve) => worker.onmessage = resolve);
  return port;
}

/** One schedule. */
class Run {
  readonly #scenario: Scenario;
  readonly #ports: Port[];
  readonly #story: string[] = [];
  /** How many ways there were at each choice. Beyond the choices, the first is gone. */
  readonly #ways: number[] = [];

  constructor(readonly task: Task, readonly choices: number[]) {
    this.#scenario = scenarios[task.name];
    this.#ports = ports.slice(0, this.#scenario.processes.length);
  }

  /** The choices of the next schedule, if any. */
  next(): number[] | undefined {
    const chosen = this.#ways.map((_, i) => this.choices[i] ?? 0);
    const last = chosen.findLastIndex((way, i) => way + 1 < this.#ways[i]);
    return last < 0 ? undefined : [...chosen.slice(0, last), chosen[last] + 1];
  }

  /** Plays it below a new directory. The result is the story of a fault, if any. */
  async play(parent: string): Promise<string | undefined> {
    const directory = `${parent}/project`;
    Deno.mkdirSync(directory, { recursive: true });
    new Int32Array(shared).fill(0);
    let fault = this.#interleave(directory);
    for (const port of ports) port.kill(); // after a fault, some still run
    fault ??= this.#scenario.end?.(directory) ??
      await leftovers(directory, this.#scenario);
    Deno.removeSync(parent, { recursive: true });
    if (fault === undefined) return undefined;
    const { name, preemptions } = this.task;
    const replay = `deno task explore ${name} ${preemptions} ${this.choices}`;
    return [...this.#story, "", fault, "", replay].join("\n");
  }

  #interleave(directory: string): string | undefined {
    const { processes, setup, variants = 1 } = this.#scenario;
    let { preemptions } = this.task;
    // With a kill, so many fewer, but a kill alone is always tried.
    const spared = Math.min(KILL, preemptions);
    let mayKill = this.#scenario.kills ?? false;
    let current = 0;
    // What a wait is for: a step of another process, or a release.
    let steps = 0;
    let releases = 0;
    const seen: number[] = [];
    const is = (state: State) => (i: number) => this.#ports[i].state === state;
    const events = (i: number) => is(State.AwaitsLock)(i) ? releases : steps;
    const mayGoOn = (i: number) =>
      is(State.New)(i) // of equal processes, the first begins first
        ? processes[i - 1] !== processes[i] || !is(State.New)(i - 1)
        : is(State.Ready)(i) || !is(State.Ended)(i) && events(i) > seen[i];
    const variant = this.#choose(variants);
    setup?.(directory, variant);
    this.#ports.forEach((port, process) =>
      port.start({ scenario: this.task.name, process, directory, variant })
    );
    for (;;) {
      const all = this.#ports.map((_, i) => (current + i) % this.#ports.length);
      let ways = all.filter(mayGoOn);
      if (ways.length === 0) { // time passes
        ways = all.filter(is(State.AwaitsTimer)).slice(0, 1);
      }
      if (ways.length === 0) break;
      const goesOn = is(State.Ready)(current);
      const hasJustBegun = this.#story.at(-1) === `${current}  begin`;
      if (goesOn && (preemptions === 0 || hasJustBegun)) ways = [current];
      const mayDie = mayKill && preemptions >= spared &&
        !is(State.New)(ways[0]);
      const way = this.#choose(ways.length + Number(mayDie));
      const dies = way === ways.length;
      if (dies) [mayKill, preemptions] = [false, preemptions - spared];
      else if (goesOn && way > 0) preemptions--;
      current = ways[dies ? 0 : way];
      const port = this.#ports[current];
      if (dies || is(State.Ready)(current)) steps++;
      if (dies || /^(unlock|close) /.test(port.label)) releases++;
      this.#story.push(
        `${current}  ${dies ? "is killed before: " : ""}${port.label}`,
      );
      if (dies) port.kill();
      else port.go(this.#ahead);
      seen[current] = events(current);
      if (is(State.Ended)(current) && port.label) {
        return `${current}  ${port.label}`;
      }
      if (this.#story.length > MANY) return "it does not end";
    }
    const stuck = this.#ports.findIndex((port) => port.state !== State.Ended);
    if (stuck >= 0) {
      return `${stuck} waits for ever: ${this.#ports[stuck].label}`;
    }
    return undefined;
  }

  /** How many steps to take until the next choice that is not the first one. */
  get #ahead(): number {
    const made = this.#ways.length;
    const next = this.choices.slice(made).findIndex((way) => way > 0);
    return next < 0 ? MANY : 1 + next;
  }

  #choose(count: number): number {
    const way = this.choices[this.#ways.length] ?? 0;
    if (way >= count) throw new Error("another schedule than before");
    this.#ways.push(count);
    return way;
  }
}

/** What is left although somebody has used the directory once more. */
async function leftovers(
  directory: string,
  { dirs = [""] }: Scenario,
): Promise<string | undefined> {
  const left = () =>
    dirs.map((dir) => `${directory}/.cog/${dir}`)
      .flatMap((path) => quietly(() => [...Deno.readDirSync(path)]) ?? [])
      .map(({ name }) => name)
      .filter((name) => /^\.(scratch|trash)-/.test(name));
  if (left().length === 0) return undefined;
  const cog = await open(directory);
  for (const dir of dirs) await cog.tempPath({ dir });
  await cog.close();
  return left().length > 0 ? `left: ${left()}` : undefined;
}

/** What a worker has, and the main program has not. */
const self = globalThis as unknown as Worker & { close(): void };
self.onmessage = async ({ data }: MessageEvent<Task | undefined>) => {
  if (data) return self.postMessage(await explore(data));
  for (const port of ports) port.dismiss();
  Deno.removeSync(root, { recursive: true });
  self.close();
};
