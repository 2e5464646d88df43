import { assert } from "@std/assert/assert";
import { assertEquals } from "@std/assert/equals";
import { resolve } from "@std/path/resolve";
import {
  exists,
  has,
  HAS_PROC,
  isFree,
  local,
  names,
  Peer,
  RESOLUTION,
  scene,
  soon,
  stranger,
  until,
  WINDOWS,
} from "./support.ts";

type Example = "build" | "cache" | "run" | "wait";

/** The command line of an example, with the permissions that it names. */
function commandLine(name: Example, args: string[]): [string, ...string[]] {
  const all = name === "cache" || name === "run";
  const permissions = all ? ["--allow-all"] : ["--allow-read", "--allow-write"];
  const flags = ["--quiet", "--no-prompt", ...RESOLUTION, ...permissions];
  const file = local(`../examples/${name}.ts`);
  return [Deno.execPath(), "run", ...flags, file, ...args];
}

/** An example at work. */
function example(name: Example, ...args: string[]): Peer {
  const [command, ...rest] = commandLine(name, args);
  return new Peer(command, rest);
}

/** An example at work whose lines are those of its errors too. */
function exampleWithErrors(name: Example, ...args: string[]): Peer {
  const merge = 'exec "$@" 2>&1'; // it keeps the process
  return new Peer("sh", ["-c", merge, "sh", ...commandLine(name, args)]);
}

/** An example on a terminal, where `type` presses its keys. */
function onTerminal(name: Example, ...args: string[]) {
  const words = commandLine(name, args);
  const quoted = words.map((it) => `'${it.replaceAll("'", `'\\''`)}'`);
  const process = new Deno.Command("script", {
    // A shell in between would die of Ctrl-C.
    args: ["-qec", `exec ${quoted.join(" ")}`, "/dev/null"],
    env: { SHELL: "/bin/sh" },
    stdin: "piped",
    stdout: "piped",
  }).spawn();
  const stdin = process.stdin.getWriter();
  const stdout = process.stdout.pipeThrough(new TextDecoderStream())
    .getReader();
  let text = "";
  const more = async () => {
    const { value = "", done } = await soon(stdout.read());
    text += value;
    return !done;
  };
  return {
    /** Reads until the screen has had the text so many times. */
    async shows(part: string, times = 1): Promise<void> {
      while (text.split(part).length <= times) {
        assert(await more(), `it ended after ${JSON.stringify(text)}`);
      }
    },
    type: (keys: string) => stdin.write(new TextEncoder().encode(keys)),
    /** All that the screen has had, and how it ended. */
    async ended() {
      while (await more()) continue;
      await stdin.close().catch(() => {}); // it may have ended before
      return { ...await soon(process.status), text };
    },
  };
}

const HAS_TERMINAL = HAS_PROC && has("script"); // macOS has another

/** How an example ends that nobody disturbs. */
async function result(name: Example, ...args: string[]) {
  const [command, ...rest] = commandLine(name, args);
  const process = new Deno.Command(command, { args: rest, stdin: "null" });
  const { code, stdout, stderr } = await soon(process.output());
  const lines = (bytes: BufferSource) =>
    new TextDecoder().decode(bytes).split("\n").slice(0, -1);
  return { code, out: lines(stdout), err: lines(stderr) };
}

/** The one line that an example prints which fails with such a code. */
async function failure(code: number, name: Example, ...args: string[]) {
  const { err: [line, ...more], ...rest } = await result(name, ...args);
  assertEquals({ ...rest, more }, { code, out: [], more: [] });
  return line;
}

/** Another process that holds the lock on `path`, until its `go`. */
async function held(path: string): Promise<Peer> {
  const holder = stranger(path);
  await holder.line();
  return holder;
}

/** A second Deno that runs `code`, as the command of an example. */
function evaluating(code: string): string[] {
  return [Deno.execPath(), "eval", "--quiet", code];
}

/** A project with a few files, and some that a build skips. */
function project() {
  const dir = scene();
  for (const sub of ["src", ".git", "node_modules", ".cog/cache"]) {
    Deno.mkdirSync(resolve(dir.path, sub), { recursive: true });
    Deno.writeTextFileSync(resolve(dir.path, sub, "file"), "abc");
  }
  Deno.writeTextFileSync(resolve(dir.path, "cog.yaml"), "");
  const cog = resolve(dir.path, ".cog");
  return { ...dir, cog, lock: resolve(cog, "cog.lock") };
}

type Project = ReturnType<typeof project>;

async function sha256(bytes: BufferSource): Promise<string> {
  return new Uint8Array(await crypto.subtle.digest("SHA-256", bytes)).toHex();
}

const NONE = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
const ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

/** Of the files of a project, with their sizes and SHA-256. */
const MANIFEST = [
  { path: "cog.yaml", size: 0, sha256: NONE },
  { path: "src/file", size: 3, sha256: ABC },
];

/** The manifest that a build wrote. */
function manifest({ path }: { path: string }): unknown {
  const file = resolve(path, ".cog", "cache", "manifest.json");
  return JSON.parse(Deno.readTextFileSync(file));
}

for (const name of ["build", "cache", "run", "wait"] as const) {
  const before = name === "cache" ? ["http://127.0.0.1/"] : [];
  const after = name === "run" ? [Deno.execPath()] : [];
  Deno.test(`${name} creates no project, and says so in one line`, async () => {
    using dir = scene();
    Deno.writeTextFileSync(resolve(dir.path, "file"), "");
    for (const project of ["missing", "file", "file/below"]) {
      const path = resolve(dir.path, project);
      const line = await failure(2, name, ...before, path, ...after);
      assertEquals(line, `${path} is not a readable directory`);
    }
    assertEquals(names(dir.path), ["file"]);
  });
}

const USAGE = {
  build: "build.ts [PROJECT]",
  cache: "cache.ts URL [PROJECT]",
  run: "run.ts [--wait SECONDS] PROJECT COMMAND...",
  wait: "wait.ts [PROJECT [SECONDS]]",
};

Deno.test("a wrong call gets one line of usage", async () => {
  const calls: [Example, ...string[]][] = [["cache"], ["cache", "no-url"]];
  calls.push(["run"], ["run", "."], ["run", "--wait"], ["wait", "--help"]);
  calls.push(["run", "--wait", "1", "."]);
  for (const seconds of ["soon", "", "-1", "1e9", "9999999"]) {
    calls.push(["run", "--wait", seconds, ".", "x"], ["wait", ".", seconds]);
  }
  const lines = calls.map(([name, ...args]) => failure(2, name, ...args));
  const usage = calls.map(([name]) => `Usage: ${USAGE[name]}`);
  assertEquals(await Promise.all(lines), usage);
});

Deno.test("build --help is no error", async () => {
  const out = [`Usage: ${USAGE.build}`];
  assertEquals(await result("build", "--help"), { code: 0, out, err: [] });
});

Deno.test("build stages a project, and leaves only its manifest", async () => {
  using dir = project();
  const file = resolve(dir.cog, "cache", "manifest.json");
  const staging = resolve(dir.cog, "staging");
  const reader = resolve(dir.cog, "cache", "reader"); // of the old manifest
  Deno.writeTextFileSync(file, "old");
  Deno.linkSync(file, reader);
  const last = `${file} stays, ${staging} is removed`;
  const out = ["Staged files: 2 (3 bytes)", last];
  assertEquals(await result("build", dir.path), { code: 0, out, err: [] });
  assertEquals(manifest(dir), MANIFEST);
  assertEquals(Deno.readTextFileSync(reader), "old");
  assertEquals(names(dir.cog), ["cache", "cog.lock"]);
});

Deno.test("build streams a large file", { ignore: !HAS_PROC }, async () => {
  using dir = scene();
  const size = 2 ** 28;
  large(dir.path, size);
  const [command, ...args] = commandLine("build", [dir.path]);
  const process = new Deno.Command(command, { args, stdout: "null" }).spawn();
  let peak = 0;
  await until(() => {
    try {
      const status = Deno.readTextFileSync(`/proc/${process.pid}/status`);
      peak = Number(/^VmHWM:\s+(\d+) kB$/m.exec(status)![1]) * 1024;
      return false;
    } catch {
      return true; // it has ended, and has no memory any more
    }
  });
  assertEquals((await process.status).code, 0);
  assert(peak > 0 && peak < size, `${peak} bytes`);
  const digest = await sha256(new Uint8Array(size));
  assertEquals(manifest(dir), [{ path: "weights", size, sha256: digest }]);
});

Deno.test("build shows its progress", { ignore: !HAS_TERMINAL }, async () => {
  using dir = project();
  let shown: string[] = [];
  for (let size = 2 ** 28; shown.length < 2 && size <= 2 ** 32; size *= 4) {
    large(dir.path, size); // so that it takes a while
    const { code, text } = await onTerminal("build", dir.path).ended();
    assertEquals(code, 0);
    const [progress, last, end] = text.split("\r\n");
    shown = progress.split("\r\x1b[K").slice(1);
    for (const line of shown) {
      assert(/^Staged files: \d+ \([\d.]+ \w+\)$/.test(line), text);
    }
    const total = (size / 1e6).toFixed(1);
    if (size < 1e9) assertEquals(shown.at(-1), `Staged files: 3 (${total} MB)`);
    assert(last.endsWith("staging is removed"), text);
    assertEquals(end, "");
  }
  assert(shown.length >= 2);
});

/** Adds a file to a project, for a build that takes a while. */
function large(project: string, size = 2 ** 28): void {
  using file = Deno.createSync(resolve(project, "weights"));
  file.truncateSync(size);
}

Deno.test("build says that it waits for another, and two take turns", async () => {
  using dir = project();
  await using holder = await held(dir.lock);
  await using first = example("build", dir.path);
  await using second = example("build", dir.path);
  const both = [first, second];
  const waiting = `Waiting for another build in ${dir.path}`;
  for (const build of both) assertEquals(await build.line(), waiting);
  assertEquals(exists(resolve(dir.cog, "staging")), false);
  await holder.go();
  for (const build of both) {
    assertEquals((await build.ended()).code, 0);
    assertEquals(await build.line(), "Staged files: 2 (3 bytes)");
  }
  assertEquals(names(dir.cog), ["cache", "cog.lock"]);
});

/** Signals a build once a path is in its scratch, and returns its first line. */
async function interrupt(dir: Project, awaited: string, signal: Deno.Signal) {
  for (let tries = 0; tries < 10; tries++) {
    await using build = exampleWithErrors("build", dir.path);
    let ended = false;
    const status = build.ended().finally(() => ended = true);
    await until(() => ended || exists(resolve(dir.cog, "staging", awaited)));
    build.kill(signal);
    const { code } = await status;
    if (code === 0) continue; // it ended before that
    assertEquals(code, signal === "SIGINT" ? 130 : 137);
    return await build.line().catch(() => undefined);
  }
  throw new Error("every build ended too early");
}

Deno.test("build cleans up after Ctrl-C", { ignore: WINDOWS }, async () => {
  using dir = project();
  large(dir.path);
  for (let i = 0; i < 1000; i++) {
    const sub = resolve(dir.path, "many", `${i}`);
    Deno.mkdirSync(sub, { recursive: true });
    Deno.writeTextFileSync(resolve(sub, "file"), "");
  }
  for (const awaited of [".", "weights", "many"]) {
    assertEquals(await interrupt(dir, awaited, "SIGINT"), "Stopped");
    assertEquals(names(dir.cog), ["cache", "cog.lock"]);
  }
});

Deno.test("build works after a killed one", { ignore: WINDOWS }, async () => {
  using dir = project();
  large(dir.path);
  assertEquals(await interrupt(dir, "weights", "SIGKILL"), undefined);
  assertEquals(exists(resolve(dir.cog, "staging", "weights")), true);
  Deno.removeSync(resolve(dir.path, "weights"));
  assertEquals((await result("build", dir.path)).code, 0);
  assertEquals(manifest(dir), MANIFEST);
  assertEquals(names(dir.cog), ["cache", "cog.lock"]);
});

Deno.test("wait gets a free lock", async () => {
  using dir = scene();
  const gotIt = { code: 0, out: ["The lock is held here"], err: [] };
  for (const seconds of [[], ["0"], ["1.5"]]) {
    assertEquals(await result("wait", dir.path, ...seconds), gotIt);
  }
});

Deno.test("wait says that it waits, and gives up or gets the lock", async () => {
  using dir = project();
  await using holder = await held(dir.lock);
  const out = ["Waiting for another build, up to 0.2 s"];
  const err = ["Gave up: another build took more than 0.2 s"];
  assertEquals(await result("wait", dir.path, "0.2"), { code: 1, out, err });
  await using wait = example("wait", dir.path);
  assertEquals(await wait.line(), "Waiting for another build, up to 60 s");
  await holder.go();
  assertEquals(await wait.line(), "The lock is held here");
  assertEquals((await wait.ended()).code, 0);
});

Deno.test("run passes on arguments, output and exit code", async () => {
  using dir = project();
  const code = "console.log(1); console.error(2); Deno.exit(+Deno.args[0])";
  const expected = { code: 42, out: ["1"], err: ["2"] };
  for (const wait of [[], ["--wait", "0"], ["--wait", "60"]]) {
    const args = [...wait, dir.path, ...evaluating(code), "42"];
    assertEquals(await result("run", ...args), expected);
  }
});

Deno.test("run says in one line that a command does not exist", async () => {
  using dir = project();
  const line = await failure(127, "run", dir.path, "no-such-command");
  assert(line.includes("'no-such-command'"), line);
});

Deno.test("run says if a file is no command", { ignore: WINDOWS }, async () => {
  using dir = project();
  const file = resolve(dir.path, "cog.yaml");
  const line = await failure(126, "run", dir.path, file);
  assert(line.includes(file), line);
});

Deno.test("run says that it waits, and gives up", async () => {
  using dir = project();
  await using _holder = await held(dir.lock);
  const args = ["--wait", "0.2", dir.path, ...evaluating("console.log(1)")];
  const gaveUp = "Gave up: the lock was not free within 0.2 s";
  const err = [`Waiting for the lock of ${dir.path}`, gaveUp];
  assertEquals(await result("run", ...args), { code: 1, out: [], err });
});

Deno.test("run waits, then runs the command", { ignore: WINDOWS }, async () => {
  using dir = project();
  for (const wait of [[], ["--wait", "60"]]) {
    await using holder = await held(dir.lock);
    const args = [...wait, dir.path, ...evaluating("console.log(1)")];
    await using run = exampleWithErrors("run", ...args);
    assertEquals(await run.line(), `Waiting for the lock of ${dir.path}`);
    await holder.go();
    assertEquals(await run.line(), "1");
    assertEquals((await run.ended()).code, 0);
  }
});

/** Says which signals it gets, until it reads a line. */
const HEARING = evaluating(`
  for (const signal of ["SIGINT", "SIGTERM"]) {
    Deno.addSignalListener(signal, () => console.log(signal));
  }
  console.log(Deno.ppid);
  await Deno.stdin.read(new Uint8Array(1));
  Deno.exit(7);
`);

for (const signal of ["SIGINT", "SIGTERM"] as const) {
  Deno.test(`run passes ${signal} on`, { ignore: WINDOWS }, async () => {
    using dir = project();
    await using run = example("run", dir.path, ...HEARING);
    assertEquals(await run.line(), `${run.pid}`);
    for (let i = 0; i < 3; i++) {
      run.kill(signal);
      assertEquals(await run.line(), signal);
      assertEquals(isFree(dir.lock), false);
    }
    await run.go();
    assertEquals((await run.ended()).code, 7);
    assertEquals(isFree(dir.lock), true);
  });

  Deno.test(`run reports death by ${signal}`, { ignore: WINDOWS }, async () => {
    using dir = project();
    const command = ["sh", "-c", "echo ready; exec cat"];
    await using run = example("run", dir.path, ...command);
    assertEquals(await run.line(), "ready");
    run.kill(signal);
    assertEquals((await run.ended()).code, signal === "SIGINT" ? 130 : 143);
    assertEquals(isFree(dir.lock), true);
  });
}

Deno.test("run ignores a late signal", { ignore: !HAS_PROC }, async () => {
  using dir = project();
  const command = ["sh", "-c", "echo $$; exec cat"];
  for (let i = 0; i < 10; i++) {
    await using run = exampleWithErrors("run", dir.path, ...command);
    const child = Number(await run.line());
    run.kill("SIGSTOP");
    Deno.kill(child, "SIGKILL");
    const stat = `/proc/${child}/stat`;
    await until(() => Deno.readTextFileSync(stat).includes(") Z "));
    run.kill("SIGTERM"); // it gets to know of both at once
    run.kill("SIGCONT");
    assertEquals((await run.ended()).code, 137);
  }
});

Deno.test("run does not double Ctrl-C", { ignore: !HAS_TERMINAL }, async () => {
  using dir = project();
  const run = onTerminal("run", dir.path, ...HEARING);
  await run.shows("\r\n");
  for (let i = 1; i <= 10; i++) {
    await run.type("\x03");
    await run.shows("SIGINT", i);
  }
  assertEquals(isFree(dir.lock), false);
  await run.type("\n");
  const { code, text } = await run.ended();
  assertEquals(code, 7);
  assertEquals(text.split("SIGINT").length - 1, 10, text);
  assertEquals(isFree(dir.lock), true);
});

/** A server of one file, by its name in a cache, that counts its requests. */
async function server(answer: (count: number) => Response | Promise<Response>) {
  let count = 0;
  const closing = new AbortController();
  const { addr, finished } = Deno.serve({
    hostname: "127.0.0.1",
    port: 0,
    signal: closing.signal,
    onListen() {},
    onError: () => new Response(null, { status: 500 }), // and not a word
  }, () => answer(++count));
  const url = `http://127.0.0.1:${addr.port}/weights`;
  return {
    url,
    name: await sha256(new TextEncoder().encode(url)),
    get count() {
      return count;
    },
    async [Symbol.asyncDispose]() {
      closing.abort();
      await finished;
    },
  };
}

/** An answer of which no more comes than `pull` makes of it. */
function unfinished(pull?: () => Promise<void>): Response {
  const start = (controller: ReadableStreamDefaultController) =>
    controller.enqueue(new Uint8Array(1024));
  return new Response(new ReadableStream({ start, pull }));
}

function hasScratch({ cog }: Project): boolean {
  return names(resolve(cog, "cache")).some((it) => it.startsWith(".scratch-"));
}

/** Fails unless a project holds what one fetch brings, and nothing more. */
function assertFetched({ cog }: Project, { name }: { name: string }) {
  const file = resolve(cog, "cache", name);
  assertEquals(names(cog), ["cache"]);
  const cached = ["file", name, `${name}.lock`].sort();
  assertEquals(names(resolve(cog, "cache")), cached);
  assertEquals(Deno.readTextFileSync(file), "weights");
  assertEquals(isFree(`${file}.lock`), true);
}

Deno.test("cache fetches once for all five", { ignore: WINDOWS }, async () => {
  using dir = project();
  const answer = Promise.withResolvers<Response>();
  await using http = await server(() => answer.promise);
  await using stack = new AsyncDisposableStack();
  const start = () => stack.use(exampleWithErrors("cache", http.url, dir.path));
  const first = start();
  await until(() => http.count === 1);
  const others = [start(), start(), start(), start()];
  const waiting = `Waiting for another fetch of ${http.url}`;
  for (const cache of others) assertEquals(await cache.line(), waiting);
  // A build, and so the lock of the project, has nothing to do with it.
  assertEquals((await result("wait", dir.path, "0")).code, 0);
  Deno.removeSync(dir.lock);
  answer.resolve(new Response("weights"));
  for (const cache of [first, ...others]) {
    assertEquals(await cache.line(), resolve(dir.cog, "cache", http.name));
    assertEquals((await cache.ended()).code, 0);
  }
  assertEquals(http.count, 1);
  assertFetched(dir, http);
});

Deno.test("cache finds a file that exists, even while its lock is held", async () => {
  using dir = project();
  await using http = await server(() => new Response("weights"));
  const file = resolve(dir.cog, "cache", http.name);
  const found = { code: 0, out: [file], err: [] };
  assertEquals(await result("cache", http.url, dir.path), found);
  {
    await using _holder = await held(`${file}.lock`);
    assertEquals(await result("cache", http.url, dir.path), found);
  }
  assertEquals(http.count, 1);
  assertFetched(dir, http);
});

Deno.test("cache leaves nothing in place if a fetch fails, and the next succeeds", async () => {
  using dir = project();
  const cut = async () => {
    await until(() => hasScratch(dir));
    throw new Error("cut");
  };
  await using http = await server((count) => {
    if (count === 1) return new Response("no", { status: 500 });
    return count === 2 ? unfinished(cut) : new Response("weights");
  });
  const left = ["file", `${http.name}.lock`].sort();
  for (const reason of ["the server answers 500", "error reading a body"]) {
    const line = await failure(1, "cache", http.url, dir.path);
    assert(line.startsWith(`Cannot fetch ${http.url}: ${reason}`), line);
    assertEquals(names(dir.cog), ["cache"]);
    assertEquals(names(resolve(dir.cog, "cache")), left);
  }
  assertEquals((await result("cache", http.url, dir.path)).code, 0);
  assertEquals(http.count, 3);
  assertFetched(dir, http);
});

Deno.test("cache cleans up after Ctrl-C", { ignore: WINDOWS }, async () => {
  using dir = project();
  await using http = await server(() => unfinished());
  await using cache = example("cache", http.url, dir.path);
  await until(() => hasScratch(dir));
  cache.kill("SIGINT");
  assertEquals((await cache.ended()).code, 130);
  assertEquals(hasScratch(dir), false);
});

Deno.test("cache takes over after a kill", { ignore: WINDOWS }, async () => {
  using dir = project();
  await using http = await server((count) =>
    count === 1 ? unfinished() : new Response("weights")
  );
  await using first = example("cache", http.url, dir.path);
  await until(() => hasScratch(dir));
  await using second = exampleWithErrors("cache", http.url, dir.path);
  await second.line(); // it waits
  first.kill();
  assertEquals((await second.ended()).code, 0);
  assertEquals(http.count, 2);
  assertFetched(dir, http);
});

Deno.test("cache gets an empty file of an answer without a body", async () => {
  using dir = project();
  await using http = await server(() => new Response(null, { status: 204 }));
  const { code, out } = await result("cache", http.url, dir.path);
  assertEquals(code, 0);
  assertEquals(Deno.statSync(out[0]).size, 0);
});

// The blocks of TypeScript in the README are tests by themselves, with --doc.

const README = Deno.readTextFileSync(local("../README.md"));
const SHELL = [...README.matchAll(/^```sh\r?\n(.*?)^```/gms)]
  .flatMap(([, block]) => block.trim().split(/\r?\n/));

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
  const copied = resolve(dir.cog, "weights");
  const [line, ...more] = SHELL.filter((line) => line.startsWith("flock "));
  assertEquals(more, []);
  const run = (limit: string) => {
    const args = [limit, "sh", "-c", line];
    return new Deno.Command("timeout", { args, cwd: dir.path }).output();
  };
  await using holder = await held(dir.lock);
  assertEquals((await run("0.5")).success, false);
  assertEquals(exists(copied), false);
  await holder.go();
  await holder.ended();
  assertEquals((await run("30")).success, true);
  assertEquals(exists(copied), true);
});
