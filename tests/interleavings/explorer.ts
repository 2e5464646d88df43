/**
 * A worker that plays the schedules of scenarios. It imports nothing that starts a
 * program: a new program holds all open files and locks until it is loaded.
 */

import { quietly } from "../../_error.ts";
import { open } from "../../mod.ts";
import { AWAITS, Port, SAY, State } from "./port.ts";
import { type Scenario, scenarios } from "./scenarios.ts";
import { OWNER, stand, UNSAY } from "./stand.ts";

/** More steps than a schedule has. */
const MANY = 500;
const KILLED = "is killed before: ";

/**
 * All schedules with at most so many preemptions, or `only` that one. The kill of a
 * process counts as a preemption.
 */
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

const disk = quietly(() => Deno.statSync("/dev/shm")) && "/dev/shm";
const root = Deno.makeTempDirSync({ dir: disk, prefix: "dotcog-" });
let played = 0;

async function explore(task: Task, memory: SharedArrayBuffer): Promise<Result> {
  const { processes } = scenarios[task.name];
  const ports = processes.map((_, i) => new Port(memory, i));
  let choices: number[] | undefined = task.only ?? [];
  let fault: string | undefined;
  let schedules = 0;
  for (; choices && !fault; schedules++) {
    const run: Run = new Run(task, choices, ports);
    fault = await run.play(`${root}/${played++}`);
    choices = task.only ? undefined : run.next();
  }
  return { schedules, fault };
}

/** One schedule. */
class Run {
  readonly #scenario: Scenario;
  readonly #story: string[] = [];
  /** The number of ways at each choice. Past `choices`, a run takes the first way. */
  readonly #ways: number[] = [];

  constructor(
    readonly task: Task,
    readonly choices: number[],
    readonly ports: Port[],
  ) {
    this.#scenario = scenarios[task.name];
  }

  /** The choices of the next schedule, if any. */
  next(): number[] | undefined {
    const chosen = this.#ways.map((_, i) => this.choices[i] ?? 0);
    const last = chosen.findLastIndex((way, i) => way + 1 < this.#ways[i]);
    return last < 0 ? undefined : [...chosen.slice(0, last), chosen[last] + 1];
  }

  /** Plays it in a new directory of `parent`. The result tells a fault, if any. */
  async play(parent: string): Promise<string | undefined> {
    const directory = `${parent}/project`;
    Deno.mkdirSync(directory, { recursive: true });
    let fault: string | undefined;
    try {
      fault = this.#interleave(directory) ?? await this.#end(directory);
    } catch (error) {
      fault = `${(error as Error).stack}`;
    }
    Deno.removeSync(parent, { recursive: true });
    if (fault === undefined) return undefined;
    const { name, preemptions } = this.task;
    const replay = `${name} ${preemptions} ${this.choices.join() || 0}`;
    return [...this.#story, "", fault, "", `deno task explore ${replay}`]
      .join("\n");
  }

  #interleave(directory: string): string | undefined {
    const { processes, setup, variants = 1 } = this.#scenario;
    let { preemptions } = this.task;
    let { kills = false } = this.#scenario;
    let current = 0;
    // A release ends waits for a lock, a step ends others.
    let steps = 0;
    let releases = 0;
    const said = new Set<string>();
    const seen: number[] = [];
    const is = (i: number, state: State) => this.ports[i].state === state;
    const events = (i: number) => is(i, State.AwaitsRelease) ? releases : steps;
    const asks = (i: number) =>
      /^(tryLock|share|lock|wait for) /.test(this.ports[i].label);
    const mayGoOn = (i: number) => {
      const { label } = this.ports[i];
      if (is(i, State.New)) { // equal processes begin in their order
        if (processes[i] === stand) return said.has(`${OWNER}`);
        return processes[i - 1] !== processes[i] || !is(i - 1, State.New);
      }
      if (is(i, State.Ready)) return true;
      if (is(i, State.Ended)) return false;
      return label.startsWith(AWAITS)
        ? said.has(label.slice(AWAITS.length))
        : events(i) > seen[i];
    };
    const variant = this.#choose(variants);
    setup?.(directory, variant);
    const play = { scenario: this.task.name, directory, variant };
    for (const port of this.ports) port.start(play);
    this.ports[0].shared.fill(0);
    for (;;) {
      const all = this.ports.map((_, i) => (current + i) % this.ports.length);
      let ways = all.filter(mayGoOn);
      if (ways.length === 0) { // time passes
        ways = all.filter((i) => is(i, State.AwaitsTimer)).slice(0, 1);
      }
      if (ways.length === 0) break;
      const goesOn = is(current, State.Ready);
      const hasJustBegun = this.#story.at(-1) === `${current}  begin`;
      if (goesOn && (preemptions === 0 || hasJustBegun)) ways = [current];
      // A death frees locks. Only a process that asks for one notices.
      const mayDie = (i: number) =>
        !is(i, State.New) && !is(i, State.Ended) && processes[i] !== stand &&
        (i === ways[0] || ways.some((other) => other !== i && asks(other)));
      const victims = kills && preemptions > 0 ? all.filter(mayDie) : [];
      const way = this.#choose(ways.length + victims.length);
      const next = [...ways, ...victims][way];
      const port = this.ports[next];
      const dies = way >= ways.length;
      if (dies || goesOn && way > 0) preemptions--;
      if (dies || is(next, State.Ready)) steps++;
      if (dies || /^(unlock|share|close) /.test(port.label)) releases++;
      if (!dies && port.label.startsWith(SAY)) {
        const whats = port.label.slice(SAY.length).split(",");
        for (const what of whats) said.add(what);
      } else if (port.label === UNSAY) said.clear();
      this.#story.push(`${next}  ${dies ? KILLED : ""}${port.label}`);
      if (dies) {
        kills = false;
        // Nobody waits for what the dead one would have said.
        for (let what = 1; what < OWNER; what++) said.add(`${what}`);
        port.kill();
        const last = this.ports.length - 1;
        if (port.shared[OWNER] === next + 1) { // its worker dies with it
          said.delete(`${OWNER}`);
          if (!is(last, State.New)) this.ports[last].kill();
        }
        continue;
      }
      port.go(this.#ahead);
      current = next;
      seen[current] = events(current);
      if (is(current, State.Ended) && port.label) {
        return `${current}  ${port.label}`;
      }
      if (this.#story.length > MANY) return "it does not end";
    }
    const stuck = this.ports.find(({ state, label }) =>
      state > State.New && state !== State.Ended &&
      label !== `${AWAITS}${OWNER}`
    );
    return stuck && `${stuck.process} never goes on: ${stuck.label}`;
  }

  /** What is wrong after a sweep, where a process may have left something. */
  async #end(directory: string): Promise<string | undefined> {
    const { dirs = [""], end, sweeps } = this.#scenario;
    if (sweeps || this.#story.some((line) => line.includes(KILLED))) {
      const cog = await open(directory);
      await cog.tempPath("staging");
      for (const dir of dirs) await cog.tempPath({ dir });
      await cog.close();
    }
    const left = dirs.map((dir) => `${directory}/.cog/${dir}`)
      .flatMap((path) => quietly(() => [...Deno.readDirSync(path)]) ?? [])
      .map(({ name }) => name)
      .filter((name) => /^\.scratch-.{36}(\.lock)?$/.test(name));
    return end?.(directory) ??
      (left.length > 0 ? `scratch is left: ${left}` : undefined);
  }

  /** The number of steps until a choice takes another way than the first. */
  get #ahead(): number {
    const made = this.#ways.length;
    const next = this.choices.slice(made).findIndex((way) => way > 0);
    return next < 0 ? MANY : 1 + next;
  }

  #choose(count: number): number {
    const way = this.choices[this.#ways.length] ?? 0;
    if (way >= count) throw new Error("the schedule does not fit the scenario");
    this.#ways.push(count);
    return way;
  }
}

/** What a worker has, and the main program has not. */
const self = globalThis as unknown as Worker & { close(): void };
self.onmessage = async ({ data: [task, memory] }: MessageEvent) => {
  if (task) return self.postMessage(await explore(task, memory));
  Deno.removeSync(root, { recursive: true });
  self.close();
};
