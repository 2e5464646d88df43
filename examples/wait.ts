/**
 * Waits for the lock of a project, says that it waits and that it got the lock,
 * and gives up after a while.
 *
 *     deno run --allow-read --allow-write examples/wait.ts [PROJECT [SECONDS]]
 */

import { open } from "@cog/dotcog";

const USAGE = "Usage: wait.ts [PROJECT [SECONDS]]";
const [project = ".", seconds = "60", ...more] = Deno.args;
if (project === "--help" || project === "-h") {
  console.log(USAGE);
  Deno.exit();
}
const isNumber = /^\d{1,6}(\.\d+)?$/.test(seconds); // a timer's limit is 24 days
if (/^-|^$/.test(project) || !isNumber || more.length > 0) {
  console.error(USAGE);
  Deno.exit(2);
}

// A bug gets a stack. A refusal by the system or Deno gets a line.
addEventListener("unhandledrejection", ({ reason }) => {
  if (!reason?.code && !(reason?.name in Deno.errors)) return;
  console.error(reason.message);
  Deno.exit(1);
});

await Deno.stat(project); // open() would create a missing one
await using cog = await open(project);
const signal = AbortSignal.timeout(Number(seconds) * 1000);
try {
  await cog.lock({ // held until cog closes
    signal,
    onWait: () =>
      console.error(`Waiting for another build, up to ${seconds} s`),
  });
} catch (error) {
  if (error !== signal.reason) throw error;
  console.error(`Gave up: the lock was not free within ${seconds} s`);
  Deno.exit(1);
}

console.log("Got the lock");
