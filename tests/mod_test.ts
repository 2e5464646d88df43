import { assert } from "@std/assert/assert";
import { assertEquals } from "@std/assert/equals";
import * as dir from "../dir.ts";
import * as lock from "../lock.ts";
import * as mod from "../mod.ts";
import { RESOLUTION, script } from "./support.ts";

Deno.test("mod.ts exports all of dir.ts and lock.ts", () => {
  assertEquals(
    Object.keys(mod).sort(),
    ["Dir", "NAME", "lock", "open", "openTemp", "tryLock"],
  );
  assertEquals({ ...mod }, { ...dir, ...lock });
});

Deno.test("importing mod.ts needs no permission, and keeps nothing alive", async () => {
  await using child = script(`console.log("imported");`, [], []);
  assertEquals(await child.line(), "imported");
  assertEquals((await child.ended()).code, 0);
});

Deno.test("mod.ts imports nothing from Node, and at most 30 modules in all", async () => {
  const url = import.meta.resolve("../mod.ts"); // no path: C: looks like a scheme
  const args = ["info", "--json", ...RESOLUTION, url];
  const { stdout } = await new Deno.Command(Deno.execPath(), { args }).output();
  const info: {
    modules: { specifier: string; dependencies?: { specifier: string }[] }[];
  } = JSON.parse(new TextDecoder().decode(stdout));
  // The stand-ins for @std, where they are in use, may use what they like.
  const modules = info.modules
    .filter(({ specifier }) => !specifier.includes("/tests/offline/"));
  assert(modules.length >= 3 && modules.length <= 30, `${modules.length}`);
  for (const { specifier, dependencies = [] } of modules) {
    for (const dependency of dependencies) {
      assert(!dependency.specifier.startsWith("node:"), specifier);
    }
  }
});
