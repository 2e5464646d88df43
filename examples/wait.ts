/**
 * Waits for the lock of a project, says so, and gives up after a while.
 *
 *     deno run --allow-read --allow-write examples/wait.ts [PROJECT [SECONDS]]
 */

import { open } from "@cog/dotcog";

const [project = ".", seconds = "60"] = Deno.args;
await using cog = await open(project);
try {
  using _lock = await cog.lock({
    signal: AbortSignal.timeout(Number(seconds) * 1000),
    onWait: () => console.log(`Waiting for another build, up to ${seconds} s`),
  });
  console.log("The project is ours");
} catch (error) {
  if (!(error instanceof DOMException && error.name === "TimeoutError")) {
    throw error;
  }
  console.error(`Gave up: another build took more than ${seconds} s`);
  Deno.exitCode = 1;
}
