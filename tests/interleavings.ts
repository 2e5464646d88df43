/**
 * Plays scenarios in all orders of the system calls of their processes.
 *
 *     deno task explore [NAME [PREEMPTIONS [SCHEDULE]]]
 */

import type { Result, Task } from "./interleavings/explorer.ts";
import { BYTES, Port } from "./interleavings/port.ts";
import { scenarios } from "./interleavings/scenarios.ts";

const MOST = Math.max(
  ...Object.values(scenarios).map(({ processes }) => processes.length),
);

/** What a test run tries of a scenario. */
export const taskOf = (name: string): Task => ({
  name,
  preemptions: scenarios[name].preemptions ?? 2,
});

/** Explores scenarios, as many at once as the machine has cores. */
export function explore(tasks: Task[]): Promise<Result>[] {
  const results = tasks.map(() => Promise.withResolvers<Result>());
  const left = tasks.entries(); // each task goes to one explorer
  const work = async (memory: SharedArrayBuffer, ports: Port[]) => {
    const explorer = start("explorer");
    for (const [i, task] of left) {
      explorer.onmessage = ({ data }) => results[i].resolve(data);
      explorer.postMessage([task, memory]);
      await results[i].promise;
    }
    explorer.postMessage([]);
    for (const port of ports) port.dismiss();
  };
  for (const _ of tasks.slice(0, navigator.hardwareConcurrency)) {
    const memory = new SharedArrayBuffer((1 + MOST) * BYTES);
    const ports = Array.from({ length: MOST }, (_, i) => new Port(memory, i));
    // An explorer would take a second to start one. The first checks the types for
    // all, so the others wait.
    for (const port of ports) {
      start("worker").postMessage([memory, port.process]);
      port.awaitStop();
    }
    work(memory, ports);
  }
  return results.map(({ promise }) => promise);
}

function start(module: string): Worker {
  const url = import.meta.resolve(`./interleavings/${module}.ts`);
  return new Worker(url, { type: "module" });
}

if (import.meta.main) {
  const [name, preemptions, schedule] = Deno.args;
  const names = Object.keys(scenarios);
  if (
    ![undefined, ...names].includes(name) || !/^\d$/.test(preemptions ?? "0") ||
    !/^(\d+,)*\d+$/.test(schedule ?? "0")
  ) {
    console.error("usage: deno task explore [NAME [PREEMPTIONS [SCHEDULE]]]");
    console.error(`NAME of a scenario: ${names.join(" ")}`);
    Deno.exit(2);
  }
  const only = schedule?.split(",").map(Number);
  const tasks = (name === undefined ? names : [name])
    .map((name) => ({
      ...taskOf(name),
      ...preemptions && { preemptions: Number(preemptions) },
      only,
    }));
  let total = 0;
  for (const [i, result] of explore(tasks).entries()) {
    const { schedules, fault } = await result;
    console.log(`${tasks[i].name}: ${schedules} schedules`);
    total += schedules;
    if (fault === undefined) continue;
    Deno.exitCode = 1;
    console.error(fault);
  }
  console.log(`all: ${total} schedules`);
  if (Deno.exitCode) Deno.exit(); // a process may be stuck
}
