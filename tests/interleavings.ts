/**
 * Plays scenarios in all orders of the system calls of their processes.
 *
 *     deno task explore [SCENARIO [PREEMPTIONS [SCHEDULE]]]
 */

import { Explorer, type Schedule } from "./interleavings/explore.ts";
import { scenarios } from "./interleavings/scenarios.ts";

const [name, preemptions, only] = Deno.args;
if (
  name !== undefined && !(name in scenarios) || !/^\d$/.test(preemptions ?? "2")
) {
  console.error("usage: deno task explore [SCENARIO [PREEMPTIONS [SCHEDULE]]]");
  console.error(`scenarios: ${Object.keys(scenarios).join(" ")}`);
  Deno.exit(2);
}

const choices = only?.split(",").filter(Boolean)
  .map((it) => it.split("=").map(Number) as [number, number]);
const schedule: Schedule | undefined = choices && new Map(choices);

using explorer = new Explorer();
let faults = 0;
for (const it of name === undefined ? Object.keys(scenarios) : [name]) {
  const start = performance.now();
  const { schedules, steps, fault } = await explorer
    .explore(it, Number(preemptions ?? 2), schedule);
  const seconds = ((performance.now() - start) / 1000).toFixed(1);
  console.log(`${it}: ${schedules} schedules, ${steps} steps, ${seconds} s`);
  if (!fault) continue;
  faults++;
  console.error(fault);
}
Deno.exitCode = faults > 0 ? 1 : 0;
