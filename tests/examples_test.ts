import { assert } from "@std/assert/assert";
import { assertEquals } from "@std/assert/equals";
import { resolve } from "@std/path/resolve";
import {
  exists,
  has,
  local,
  names,
  Peer,
  RESOLUTION,
  scene,
  stranger,
  until,
} from "./support.ts";

function example(name: string, ...args: string[]): Peer {
  const flags = ["--quiet", ...RESOLUTION, "--allow-read", "--allow-write"];
  const file = local(`../examples/${name}.ts`);
  return new Peer(Deno.execPath(), ["run", ...flags, file, ...args]);
}

/** A project with a few files, and some that a build skips. */
function project(): { path: string } & Disposable {
  const dir = scene();
  for (const sub of ["src", ".git", "node_modules", ".cog/cache"]) {
    Deno.mkdirSync(resolve(dir.path, sub), { recursive: true });
    Deno.writeTextFileSync(resolve(dir.path, sub, "file"), "abc");
  }
  Deno.writeTextFileSync(resolve(dir.path, "cog.yaml"), "");
  return dir;
}

const MANIFEST = [
  {
    path: "cog.yaml",
    size: 0,
    sha256: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
  },
  {
    path: "src/file",
    size: 3,
    sha256: "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
  },
];

Deno.test("build stages a project, and leaves only its manifest", async () => {
  using dir = project();
  await using build = example("build", dir.path);
  assert((await build.line()).startsWith(`Staging ${dir.path} in `));
  assertEquals(await build.line(), "Staged 2 files, 3 bytes");
  const manifest = resolve(dir.path, ".cog", "cache", "manifest.json");
  assertEquals(await build.line(), `Wrote ${manifest}`);
  assertEquals((await build.ended()).code, 0);
  assertEquals(JSON.parse(Deno.readTextFileSync(manifest)), MANIFEST);
  assertEquals(names(resolve(dir.path, ".cog")), ["cache", "cog.lock"]);
});

Deno.test(
  "build says so where it must wait for another, two run one after the other",
  async () => {
    using dir = project();
    await using holder = stranger(resolve(dir.path, ".cog", "cog.lock"));
    await holder.line();
    await using first = example("build", dir.path);
    await using second = example("build", dir.path);
    for (const build of [first, second]) {
      assertEquals(
        await build.line(),
        `Waiting for another build in ${dir.path}`,
      );
    }
    assertEquals(exists(resolve(dir.path, ".cog", "build")), false);
    await holder.go();
    for (const build of [first, second]) {
      assertEquals((await build.ended()).code, 0);
      assert((await build.line()).startsWith("Staging"));
    }
    assertEquals(names(resolve(dir.path, ".cog")), ["cache", "cog.lock"]);
  },
);

Deno.test("build leaves no scratch after Ctrl-C", {
  ignore: Deno.build.os === "windows",
}, async () => {
  using dir = project();
  const many = resolve(dir.path, "many");
  Deno.mkdirSync(many);
  for (let i = 0; i < 300; i++) {
    Deno.writeTextFileSync(resolve(many, `${i}`), "");
  }
  const scratch = resolve(dir.path, ".cog", "build");
  let code;
  do { // until a build is caught at work
    await using build = example("build", dir.path);
    let ended = false;
    build.ended().then(() => ended = true);
    await until(() => ended || exists(scratch));
    build.kill("SIGINT");
    ({ code } = await build.ended());
    assertEquals(exists(scratch), false);
  } while (code === 0);
  assertEquals(code, 130);
  const left = names(resolve(dir.path, ".cog"));
  assertEquals(left.filter((name) => name.startsWith(".scratch")), []);
});

Deno.test("wait gets a free lock", async () => {
  using dir = scene();
  await using wait = example("wait", dir.path);
  assertEquals(await wait.line(), "The project is ours");
  assertEquals((await wait.ended()).code, 0);
});

Deno.test("wait says that it waits, and gives up", async () => {
  using dir = project();
  await using holder = stranger(resolve(dir.path, ".cog", "cog.lock"));
  await holder.line();
  await using wait = example("wait", dir.path, "0.2");
  assertEquals(await wait.line(), "Waiting for another build, up to 0.2 s");
  assertEquals((await wait.ended()).code, 1);
});

// The blocks of TypeScript in the README are tests by themselves, with --doc.

const SHELL = [
  ...Deno.readTextFileSync(local("../README.md")).matchAll(
    /^```sh\r?\n(.*?)^```/gms,
  ),
].flatMap(([, block]) => block.trim().split(/\r?\n/));

Deno.test("the README's tasks are there", () => {
  const { tasks } = JSON.parse(Deno.readTextFileSync(local("../deno.json")));
  const named = SHELL.filter((line) => line.startsWith("npx -y deno task "));
  assertEquals(named.length, 2);
  for (const line of named) assert(line.split(" ").at(-1)! in tasks, line);
});

Deno.test("the README's line for a shell waits for the lock, then copies", {
  ignore: !has("flock") || !has("timeout"),
}, async () => {
  using dir = project();
  Deno.mkdirSync(resolve(dir.path, "weights"));
  const copied = resolve(dir.path, ".cog", "weights");
  const [line, ...more] = SHELL.filter((line) => !line.startsWith("npx "));
  assertEquals(more, []);
  const run = (limit: string) =>
    new Deno.Command("timeout", {
      args: [limit, "sh", "-c", line],
      cwd: dir.path,
    }).output();
  await using holder = stranger(resolve(dir.path, ".cog", "cog.lock"));
  await holder.line();
  assertEquals((await run("0.5")).success, false);
  assertEquals(exists(copied), false);
  await holder.go();
  await holder.ended();
  assertEquals((await run("30")).success, true);
  assertEquals(exists(copied), true);
});
