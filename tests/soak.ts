/**
 * Random trouble for the library, for as long as asked. The same seed makes the
 * same choices, but the timing stays the machine's.
 *
 *     deno task soak [SECONDS] [SEED]
 */

import { callers, soakCallers } from "./soak/callers.ts";
import { makeDice, run } from "./soak/journal.ts";
import { peers, processes, soakProcesses } from "./soak/processes.ts";
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
run.end = performance.now() + Number(seconds) * 1000;

globalThis.addEventListener("unhandledrejection", (event) => {
  event.preventDefault();
  callers.violated("all", "no unhandled rejection", event.reason);
});
Deno.addSignalListener("SIGINT", () => run.failed.reject("interrupted"));

const { path, [Symbol.dispose]: remove } = scene();
const dice = makeDice(Number(seed));
const parts = [soakCallers(path, makeDice(dice.fork()))];
if (WINDOWS) console.log("skipped on Windows: processes");
else parts.push(soakProcesses(path, dice));
const error = await Promise.race([run.failed.promise, Promise.all(parts)])
  .then(() => undefined, (error) => error);
run.end = 0; // no other process starts
for (const peer of peers) peer.kill();
await Promise.allSettled([...peers].map((peer) => peer.ended()));
remove();
for (const { part, counts } of [callers, processes]) {
  const all = Object.entries(counts).map(([what, many]) => `${many} ${what}`);
  console.log(`${part}: ${all.join(", ")}`);
}
if (error === undefined) console.log("0 violations");
else console.error(`seed ${seed}\n`, error);
Deno.exit(error === undefined ? 0 : 1);
