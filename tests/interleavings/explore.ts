/** All orders in which processes can take their steps, one after the other. */

import { open } from "../../mod.ts";
import { MEMORY_DISK, names } from "../support.ts";
import { Port, State } from "./port.ts";
import { type Scenario, scenarios } from "./scenarios.ts";

/** How many preemptions a kill counts for. */
const KILL = 2;

/** A schedule differs from the first one by these choices, by their numbers. */
export type Schedule = Map<number, number>;

/** What was found in some schedules. */
export interface Result {
  schedules: number;
  steps: number;
  /** The story of the first fault. */
  fault?: string;
}

export class Explorer implements Disposable {
  readonly #shared = new SharedArrayBuffer(32); // of all processes
  readonly #ports: Port[] = [];
  readonly #root = Deno.makeTempDirSync({
    dir: MEMORY_DISK,
    prefix: "dotcog-",
  });
  #played = 0;

  [Symbol.dispose](): void {
    for (const port of this.#ports) port.dismiss();
    Deno.removeSync(this.#root, { recursive: true });
  }

  /** Plays all schedules with so many preemptions at most, or just one. */
  async explore(
    name: string,
    preemptions: number,
    only?: Schedule,
  ): Promise<Result> {
    await this.#hire(scenarios[name].processes.length);
    const result: Result = { schedules: 0, steps: 0 };
    let schedule: Schedule | undefined = only ?? new Map();
    while (schedule && !result.fault) {
      const run: Run = new Run(name, schedule, preemptions, this.#ports);
      result.schedules++;
      result.fault = await this.#play(run);
      result.steps += run.story.length;
      schedule = only ? undefined : run.next();
    }
    return result;
  }

  async #play(run: Run): Promise<string | undefined> {
    const directory = `${this.#root}/${this.#played++}`;
    Deno.mkdirSync(directory);
    new Int32Array(this.#shared).fill(0);
    const fault = run.play(directory) ??
      await leftovers(directory, run.scenario);
    Deno.removeSync(directory, { recursive: true });
    return fault && [...run.story, "", fault, "", run.replay].join("\n");
  }

  async #hire(count: number): Promise<void> {
    while (this.#ports.length < count) {
      const own = new SharedArrayBuffer(8192);
      const port = new Port({ own, shared: this.#shared });
      const url = import.meta.resolve("./worker.ts");
      const worker = new Worker(url, { type: "module" });
      worker.postMessage(port.buffers);
      await new Promise((resolve) => worker.onmessage = resolve);
      this.#ports.push(port);
    }
  }
}

/** What one schedule does. */
class Run {
  readonly scenario: Scenario;
  readonly story: string[] = [];
  /** How many ways there were at each choice, and which was gone. */
  readonly #ways: { count: number; chosen: number }[] = [];
  readonly #ports: Port[];

  constructor(
    readonly name: string,
    readonly schedule: Schedule,
    readonly preemptions: number,
    ports: Port[],
  ) {
    this.scenario = scenarios[name];
    this.#ports = ports.slice(0, this.scenario.processes.length);
  }

  /** The choices of the next schedule, if any. */
  next(): Schedule | undefined {
    while (this.#ways.length > 0) {
      const { count, chosen } = this.#ways.pop()!;
      if (chosen + 1 === count) continue;
      const gone = this.#ways.map(({ chosen }, i) => [i, chosen] as const);
      const choices = [...gone, [gone.length, chosen + 1] as const];
      return new Map(choices.filter(([, chosen]) => chosen > 0));
    }
    return undefined;
  }

  get replay(): string {
    const chosen = this.#ways.flatMap(({ chosen }, i) =>
      chosen > 0 ? `${i}=${chosen}` : []
    );
    return `deno task explore ${this.name} ${this.preemptions} ${chosen}`;
  }

  /** Plays the schedule in a directory. The result is a fault, if any. */
  play(directory: string): string | undefined {
    const { setup, end, kills = false, variants = 1 } = this.scenario;
    setup?.(directory);
    const variant = this.#choose(variants);
    this.#ports.forEach((port, process) =>
      port.start({ scenario: this.name, process, directory, variant })
    );
    let current = 0;
    let preemptions = this.preemptions;
    // With a kill, so many fewer, but a kill alone is always tried.
    const spared = Math.min(KILL, this.preemptions);
    let mayKill = kills;
    let progress = 0;
    const yieldedAt = this.#ports.map(() => -1);
    for (;;) {
      const isReady = (i: number) => this.#ports[i].state === State.Ready;
      const mayGoOn = (i: number) => {
        const { state } = this.#ports[i];
        return state === State.Ready ||
          state !== State.Ended && progress > yieldedAt[i];
      };
      const all = this.#ports.map((_, i) => (current + i) % this.#ports.length);
      let enabled = all.filter(mayGoOn);
      if (enabled.length === 0) { // time passes
        enabled = all.filter((i) => this.#ports[i].state === State.AwaitsTimer)
          .slice(0, 1);
      }
      if (enabled.length === 0) break;
      const goesOn = isReady(current);
      const { preempted = current } = this.scenario;
      const isSpared = preemptions === 0 || current !== preempted;
      const ways = goesOn && isSpared ? [current] : enabled;
      const isKill = (way: number) => way === ways.length;
      mayKill &&= preemptions >= spared;
      const way = this.#choose(ways.length + (mayKill ? 1 : 0));
      if (way > 0 && !isKill(way) && goesOn) preemptions--;
      current = ways[isKill(way) ? 0 : way];
      const port = this.#ports[current];
      const who = `${current} `;
      if (isKill(way)) {
        mayKill = false;
        preemptions -= spared;
        this.story.push(`${who} is killed before: ${port.label}`);
        port.kill(current);
      } else {
        this.story.push(`${who} ${port.label}`);
        if (port.state === State.Ready) progress++;
        port.go();
      }
      if (port.state === State.Ended && port.label) {
        return `${who} ${port.label}`;
      }
      yieldedAt[current] = progress;
      if (this.story.length > 3000) return "it does not end";
    }
    const stuck = this.#ports.flatMap((port, i) =>
      port.state === State.Ended ? [] : `${i} waits for ever: ${port.label}`
    );
    if (stuck.length > 0) return stuck.join("\n");
    return end?.(directory);
  }

  #choose(count: number): number {
    const chosen = this.schedule.get(this.#ways.length) ?? 0;
    if (chosen >= count) throw new Error("another schedule than before");
    this.#ways.push({ count, chosen });
    return chosen;
  }
}

/** What is left although somebody has used the directory once more. */
async function leftovers(
  directory: string,
  { dirs = [""] }: Scenario,
): Promise<string | undefined> {
  const cog = await open(directory);
  for (const dir of dirs) await cog.tempPath({ dir });
  await cog.close();
  const left = dirs.flatMap((dir) => names(`${cog.root}/${dir}`))
    .filter((name) => /^\.(scratch|trash)-/.test(name));
  return left.length > 0 ? `left: ${left}` : undefined;
}
