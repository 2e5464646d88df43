/**
 * Runs a command under the lock of a project, on every system.
 *
 *     deno run -A examples/run.ts [--wait SECONDS] [--] PROJECT COMMAND...
 *
 * It exits with the code of the command, with 1 if the wait takes longer than
 * SECONDS or the lock cannot be taken, with 2 if it is called wrongly, and with
 * 126 or 127 if the command cannot run or does not exist.
 *
 * It passes SIGHUP and SIGTERM on, and without a terminal SIGINT and SIGQUIT
 * too. On Windows, it passes nothing on. If another signal, such as SIGKILL,
 * ends the script, the command goes on without the lock: unlike a command under
 * `flock(1)`, it does not inherit the lock. The command must not take the same
 * lock itself.
 */

import { open } from "@cog/dotcog";

const USAGE = "Usage: run.ts [--wait SECONDS] [--] PROJECT COMMAND...";
const args = [...Deno.args];
const seconds = args[0] === "--wait" ? args.splice(0, 2)[1] : undefined;
if (args[0] === "--help" || args[0] === "-h") {
  console.log(USAGE);
  Deno.exit();
}
const isOption = args[0]?.startsWith("-") && args[0] !== "--";
const [project, command, ...rest] = args[0] === "--" ? args.slice(1) : args;
const isNumber = /^\d{1,6}(\.\d+)?$/.test(seconds ?? "0"); // up to 11 days
if (isOption || !isNumber || !project || !command) {
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
// The listeners keep the script, and so its lock, until the command ends.
const signals: Deno.Signal[] = Deno.build.os === "windows"
  ? ["SIGINT"]
  : ["SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM"];
for (const signal of signals) {
  Deno.addSignalListener(signal, () => {
    if (isKey(signal)) return;
    try {
      child.kill(signal);
    } catch {
      // The command has just ended.
    }
  });
}

try {
  child = new Deno.Command(command, { args: rest }).spawn();
} catch (error) {
  console.error((error as Error).message);
  Deno.exit(error instanceof Deno.errors.NotFound ? 127 : 126);
}
const { code } = await child.status; // 128 + N after signal N
// A late signal can still kill a script that ends without Deno.exit().
Deno.exit(code);

/**
 * Whether the signal comes from a key, such as Ctrl-C. The terminal then sends
 * it to the command too, and a second signal would cut the command's cleanup
 * short. From another program, send SIGTERM instead.
 */
function isKey(signal: Deno.Signal): boolean {
  if (Deno.build.os === "windows") return true;
  if (signal !== "SIGINT" && signal !== "SIGQUIT") return false;
  try {
    Deno.openSync("/dev/tty").close(); // whatever the input is
    return true;
  } catch {
    return false; // no terminal controls this script
  }
}
