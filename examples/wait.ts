/**
 * Waits for the lock of a project, says so, and gives up after a while.
 *
 *     deno run --allow-read --allow-write examples/wait.ts [PROJECT [SECONDS]]
 */

import { open } from "@cog/dotcog";

const [project = ".", seconds = "60"] = Deno.args;
// A timer has a limit of 24 days.
if (project === "--help" || !/^\d{1,6}(\.\d+)?$/.test(seconds)) {
  console.error("Usage: wait.ts [PROJECT [SECONDS]]");
  Deno.exit(2);
}
const info = await Deno.stat(project).catch(() => undefined);
if (!info?.isDirectory) { // open() would create it
  console.error(`${project} is not a readable directory`);
  Deno.exit(2);
}

await using cog = await open(project);
const signal = AbortSignal.timeout(Number(seconds) * 1000);
try {
  await cog.lock({ // held until cog closes
    signal,
    onWait: () => console.log(`Waiting for another build, up to ${seconds} s`),
  });
} catch (error) {
  if (error !== signal.reason) throw error;
  console.error(`Gave up: another build took more than ${seconds} s`);
  Deno.exit(1);
}

console.log("The lock is held here");
