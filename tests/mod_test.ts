import { assert } from "@std/assert/assert";
import { assertEquals } from "@std/assert/equals";
import { walk } from "@std/fs/walk";
import { fromFileUrl } from "@std/path/from-file-url";
import { relative } from "@std/path/relative";
import { resolve } from "@std/path/resolve";
import * as dir from "../dir.ts";
import * as lock from "../lock.ts";
import * as mod from "../mod.ts";
import { local, MOD, Peer, RESOLUTION, scene, script } from "./support.ts";

Deno.test("mod.ts exports all of dir.ts and lock.ts", () => {
  const names = ["Dir", "NAME", "lock", "open", "openTemp", "tryLock"];
  assertEquals(Object.keys(mod).sort(), names);
  assertEquals({ ...mod }, { ...dir, ...lock });
});

Deno.test("importing mod.ts needs no permission, and keeps nothing alive", async () => {
  await using child = script(`console.log("imported");`, [], []);
  assertEquals(await child.line(), "imported");
  assertEquals((await child.ended()).code, 0);
});

Deno.test("importing mod.ts and open() leave node:process unloaded", async () => {
  using dir = scene();
  const code = `
    Object.defineProperty(globalThis, "process", {
      get: () => { throw new Error("somebody reads globalThis.process"); },
    });
    const { open } = await import("${MOD}");
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

/** `mod.ts` and all its imports, except the stand-ins. */
async function graph() {
  const args = ["info", "--json", ...RESOLUTION, MOD];
  const { stdout } = await new Deno.Command(Deno.execPath(), { args }).output();
  const info: {
    modules: { specifier: string; dependencies?: { specifier: string }[] }[];
  } = JSON.parse(new TextDecoder().decode(stdout));
  // The stand-ins for @std, where they are in use, may use what they like.
  return info.modules
    .filter(({ specifier }) => !specifier.includes("/tests/offline/"));
}

Deno.test("mod.ts imports nothing from Node, and at most 18 modules of its own", async () => {
  const modules = await graph();
  const own = modules.filter(({ specifier }) => specifier.startsWith("file:"));
  assert(own.length >= 3 && own.length <= 18, `${own.length}`);
  for (const { specifier, dependencies = [] } of modules) {
    for (const dependency of dependencies) {
      assert(!dependency.specifier.startsWith("node:"), specifier);
    }
  }
});

Deno.test("deno publish takes all that mod.ts imports, deno.json and the documents", async () => {
  using dir = scene();
  const root = local("..");
  // The copied modules are empty, so that `deno publish` needs no JSR.
  const skip = [/[\\/](\.git|\.cog|coverage)$/];
  const options = { includeDirs: false, includeSymlinks: false, skip } as const;
  for await (const { path } of walk(root, options)) {
    const copy = resolve(dir.path, relative(root, path));
    Deno.mkdirSync(resolve(copy, ".."), { recursive: true });
    if (!path.endsWith(".ts")) Deno.copyFileSync(path, copy);
    else Deno.writeTextFileSync(copy, "export {};");
  }
  const { stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["publish", "--dry-run", "--allow-dirty"],
    cwd: dir.path,
    env: { NO_COLOR: "1" },
  }).output();
  const published = new TextDecoder().decode(stderr).match(/file:\S+/g)!
    .map((url) => relative(dir.path, fromFileUrl(url)));
  const modules = (await graph())
    .filter(({ specifier }) => specifier.startsWith("file:"))
    .map(({ specifier }) => relative(root, fromFileUrl(specifier)));
  const rest = ["CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "README.md"];
  assertEquals(published.sort(), [...modules, ...rest, "deno.json"].sort());
});
