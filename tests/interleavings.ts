/**
 * Plays scenarios in all orders of the system calls of their processes.
 *
 *     deno task explore [NAME [PREEMPTIONS [SCHEDULE]]]
 */

import type { Result, Task } from "./interleavings/explorer.ts";
import { scenarios } from "./interleavings/scenarios.ts";

/** Explores scenarios, as many at once as the machine has cores. */
export function explore(tasks: Task[]): Promise<Result>[] {
  const results = tasks.map(() => Promise.withResolvers<Result>());
  const left = tasks.entries(); // shared by the workers
  const work = async () => {
    const url = import.meta.resolve("./interleavings/explorer.ts");
    const worker = new Worker(url, { type: "module" });
    for (const [i, task] of left) {
      worker.onmessage = ({ data }) => results[i].resolve(data);
      worker.postMessage(task);
      await results[i].promise;
    }
    worker.postMessage(undefined);
  };
  for (let i = 0; i < navigator.hardwareConcurrency; i++) work();
  return results.map(({ promise }) => promise);
}

if (import.meta.main) {
  const [name, preemptions = "2", choices] = Deno.args;
  const names = Object.keys(scenarios);
  if (![undefined, ...names].includes(name) || !/^\d$/.test(preemptions)) {
    console.error("usage: deno task explore [NAME [PREEMPTIONS [SCHEDULE]]]");
    console.error(`names: ${names.join(" ")}`);
    Deno.exit(2);
  }
  const only = choices?.split(",").map(Number);
  const tasks = (name === undefined ? names : [name])
    .map((name) => ({ name, preemptions: Number(preemptions), only }));
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
}
