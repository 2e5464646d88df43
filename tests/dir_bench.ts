/** What the directory costs, beside the bare calls that it cannot do without. */

import { resolve } from "@std/path/resolve";
import { open } from "../dir.ts";
import { compare, perCall } from "./compare.ts";
import { local, RESOLUTION, scene } from "./support.ts";

const dir = scene();
addEventListener("unload", () => dir[Symbol.dispose]());
const cog = await open(dir.path);
const staging = resolve(cog.root, "staging");

async function scratch(name?: string): Promise<number> {
  const twenty = Array.from({ length: 20 }, () => open(dir.path));
  const opened = await Promise.all(twenty);
  return perCall(20, async () => {
    const cog = opened.pop()!;
    await cog.tempPath(name!);
    await cog.close();
  });
}
const recursive = { recursive: true };
compare("scratch, created, wiped and removed", "µs", 30, {
  "bare: remove, mkdir, remove": () =>
    perCall(20, async () => {
      await Deno.remove(staging, recursive).catch(() => {});
      await Deno.mkdir(staging);
      await Deno.remove(staging, recursive);
    }),
  "tempPath(name), close()": () => scratch("staging"),
  "tempPath(), close()": () => scratch(),
});

/** The milliseconds that a Deno takes to run a module and end. */
async function start(module: string): Promise<number> {
  const args = ["run", "--quiet", ...RESOLUTION, module];
  const start = performance.now();
  await new Deno.Command(Deno.execPath(), { args }).output();
  return performance.now() - start;
}
const empty = resolve(dir.path, "empty.ts");
Deno.writeTextFileSync(empty, "");
compare("start of a process", "ms", 30, {
  "an empty module": () => start(empty),
  "mod.ts": () => start(local("../mod.ts")),
});
