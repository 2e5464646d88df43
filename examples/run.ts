/**
 * Runs a command under the lock of a project, on every system.
 *
 *     deno run -A examples/run.ts [--wait SECONDS] PROJECT COMMAND...
 *
 * It exits with the code of the command, with 1 if the wait takes longer than
 * SECONDS, with 2 if it is called wrongly, and with 126 or 127 if the command
 * cannot run or does not exist. The command must not take the same lock itself.
 */

import { open } from "@cog/dotcog";

const args = [...Deno.args];
const seconds = args[0] === "--wait" ? args.splice(0, 2)[1] : undefined;
const [project, command, ...rest] = args;
// A timer has a limit of 24 days.
if (!command || !/^\d{1,6}(\.\d+)?$/.test(seconds ?? "0")) {
  console.error("Usage: run.ts [--wait SECONDS] PROJECT COMMAND...");
  Deno.exit(2);
}
const info = await Deno.stat(project).catch(() => undefined);
if (!info?.isDirectory) { // open() would create it
  console.error(`${project} is not a readable directory`);
  Deno.exit(2);
}

await using cog = await open(project);
const signal = seconds === undefined
  ? undefined
  : AbortSignal.timeout(Number(seconds) * 1000);
try {
  await cog.lock({ // held until cog closes
    signal,
    onWait: () => console.error(`Waiting for the lock of ${cog.projectDir}`),
  });
} catch (error) {
  if (error !== signal?.reason) throw error;
  console.error(`Gave up: the lock was not free within ${seconds} s`);
  Deno.exit(1);
}

let child: Deno.ChildProcess;
const pass = (signal: Deno.Signal) => {
  try {
    child.kill(signal);
  } catch {
    // It has just ended.
  }
};
// The listeners keep this script and its lock alive until the command ends.
// Windows and a terminal send Ctrl-C to the command too, and a second one would
// cut its cleanup short.
const windows = Deno.build.os === "windows";
const direct = windows || Deno.stdin.isTerminal();
Deno.addSignalListener("SIGINT", () => direct || pass("SIGINT"));
if (!windows) Deno.addSignalListener("SIGTERM", () => pass("SIGTERM"));

try {
  child = new Deno.Command(command, { args: rest }).spawn();
} catch (error) {
  console.error((error as Error).message);
  Deno.exit(error instanceof Deno.errors.NotFound ? 127 : 126);
}
const { code } = await child.status; // 128 + N after signal N
// A late signal can still kill a script that ends without Deno.exit().
Deno.exit(code);
