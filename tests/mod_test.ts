import { assert } from "@std/assert/assert";
import { assertEquals } from "@std/assert/equals";
import * as dir from "../dir.ts";
import * as lock from "../lock.ts";
import * as mod from "../mod.ts";
import { Peer, RESOLUTION, scene, script } from "./support.ts";

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

Deno.test("importing mod.ts and open() leave node:process unloaded", async () => {
  using dir = scene();
  const mod = import.meta.resolve("../mod.ts");
  const code = `
    Object.defineProperty(globalThis, "process", {
      get: () => { throw new Error("somebody reads globalThis.process"); },
    });
    const { open } = await import("${mod}");
    await using cog = await open(".");
    await cog.lock();
    await cog.tempPath("staging");
    console.log(cog.projectDir);`;
  const url = `data:application/typescript,${encodeURIComponent(code)}`;
  const args = ["run", "--quiet", "--allow-all", ...RESOLUTION, url];
  await using child = new Peer(Deno.execPath(), args, { cwd: dir.path });
  assertEquals(await child.line(), dir.path);
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
