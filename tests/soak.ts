/**
 * Random trouble for the library, for as long as asked. The same seed makes the
 * same choices, but the timing stays the machine's.
 *
 *     deno task soak [SECONDS] [SEED]
 */

import { resolve } from "@std/path/resolve";
import { callers, soakCallers } from "./soak/callers.ts";
import { type Dice, failed, type Journal, makeDice } from "./soak/journal.ts";
import {
  endAll,
  processes,
  scratch,
  soakProcesses,
  soakScratch,
} from "./soak/processes.ts";
import { scene, WINDOWS } from "./support.ts";

const [seconds = "10", seed = `${Math.floor(Math.random() * 2 ** 32)}`] =
  Deno.args;
if (
  Deno.args.length > 2 || !/^\d{1,9}(\.\d+)?$/.test(seconds) ||
  !/^\d+$/.test(seed) || Number(seed) >= 2 ** 32
) {
  console.error("usage: deno task soak [SECONDS] [SEED]");
  Deno.exit(2);
}
console.log(`seed ${seed}`);
const end = performance.now() + Number(seconds) * 1000;
const isOver = () => performance.now() >= end;

globalThis.addEventListener("unhandledrejection", (event) => {
  event.preventDefault();
  callers.violated("no unhandled rejection", event.reason);
});
Deno.addSignalListener("SIGINT", () => failed.reject("interrupted"));

async function soak(root: string): Promise<void> {
  const dice = makeDice(Number(seed));
  const begin = (
    { part }: Journal,
    work: (dir: string, dice: Dice, isOver: () => boolean) => Promise<void>,
  ) => {
    const dir = resolve(root, part);
    Deno.mkdirSync(dir);
    return work(dir, makeDice(dice.below(2 ** 32)), isOver);
  };
  const parts = [begin(callers, soakCallers)];
  if (WINDOWS) console.log("skipped on Windows: processes and scratch");
  else {
    parts.push(begin(processes, soakProcesses), begin(scratch, soakScratch));
  }
  await Promise.race([failed.promise, Promise.all(parts)]);
}

const { path: root, [Symbol.dispose]: remove } = scene();
const error = await soak(root).then(() => undefined, (error) => error);
await endAll();
remove();
for (const { part, counts } of [callers, processes, scratch]) {
  const numbers = Object.entries(counts).map(([what, many]) =>
    `${many} ${what}`
  );
  console.log(`${part}: ${numbers.join(", ")}`);
}
if (error === undefined) {
  console.log("0 violations");
  Deno.exit(0);
}
console.error(`seed ${seed}`);
console.error(error);
Deno.exit(1);
