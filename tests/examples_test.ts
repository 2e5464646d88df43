import { assert } from "@std/assert/assert";
import { assertEquals } from "@std/assert/equals";
import { resolve } from "@std/path/resolve";
import { open } from "../mod.ts";
import {
  exists,
  has,
  HAS_PROC,
  HAS_STRACE,
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

type Example = keyof typeof USAGE;

const FILES = ["--allow-read", "--allow-write"];

/** The command line of an example, with the permissions that it names. */
function commandLine(
  name: Example,
  args: string[],
  permissions = name === "cache" || name === "run" ? ["--allow-all"] : FILES,
): string[] {
  const flags = ["--quiet", "--no-prompt", ...RESOLUTION, ...permissions];
  const file = local(`../examples/${name}.ts`);
  return [Deno.execPath(), "run", ...flags, file, ...args];
}

function start([command, ...args]: string[]): Peer {
  return new Peer(command, args);
}

/** An example at work whose lines are those of its errors too. */
function example(name: Example, ...args: string[]): Peer {
  const merge = 'exec "$@" 2>&1'; // it keeps the process
  return start(["sh", "-c", merge, "sh", ...commandLine(name, args)]);
}

/** An example that has said that it waits. Its lines are those of its output. */
async function waiting(notice: string, name: Example, ...args: string[]) {
  const file = Deno.makeTempFileSync();
  const words = ["sh", "-c", 'exec "$@" 2> "$0"', file];
  const waiter = start([...words, ...commandLine(name, args)]);
  await until(() => Deno.readTextFileSync(file) === `${notice}\n`);
  Deno.removeSync(file);
  return waiter;
}

/** An example without a terminal, even if these tests have one. */
function withoutTerminal(name: Example, ...args: string[]): Peer {
  const code = "use POSIX; POSIX::setsid(); exec @ARGV";
  return start(["perl", "-e", code, ...commandLine(name, args)]);
}

/** A command of a shell on a terminal, where `type` presses its keys. */
function onTerminal(before: string, words: string[]) {
  const quoted = words.map((it) => `'${it}'`);
  const process = new Deno.Command("script", {
    args: ["-qec", `${before} ${quoted.join(" ")}; exit $?`, "/dev/null"],
    env: { SHELL: "/bin/sh" },
    stdin: "piped",
    stdout: "piped",
  }).spawn();
  const stdin = process.stdin.getWriter();
  const stdout = process.stdout.pipeThrough(new TextDecoderStream())
    .getReader();
  return {
    /** All that the screen has had. */
    text: "",
    /** Reads what comes next, unless it has ended. */
    async more(): Promise<boolean> {
      const { value = "", done } = await soon(stdout.read());
      this.text += value;
      return !done;
    },
    /** Reads until the screen has had the text. */
    async shows(part: string): Promise<void> {
      while (!this.text.includes(part)) assert(await this.more(), this.text);
    },
    type: (keys: string) => stdin.write(new TextEncoder().encode(keys)),
    /** The code with which it ends. */
    async ended(): Promise<number> {
      while (await this.more()) continue;
      await stdin.close().catch(() => {}); // it may have ended before
      return (await soon(process.status)).code;
    },
  };
}

const EVAL = [Deno.execPath(), "eval", "--quiet"]; // and the code
const APART = { ignore: WINDOWS || !has("perl") }; // Git for Windows has another
const TERMINAL = { ignore: !HAS_PROC || !has("script") }; // macOS has another
const FLOCK = { ignore: !has("flock") || !has("timeout") };
const POSIX = { ignore: WINDOWS };

async function output([command, ...args]: string[]) {
  const process = new Deno.Command(command, { args, stdin: "null" });
  const { code, stdout, stderr } = await soon(process.output());
  const lines = (bytes: BufferSource) =>
    new TextDecoder().decode(bytes).split("\n").slice(0, -1);
  return { code, out: lines(stdout), err: lines(stderr) };
}

/** How an example ends that nobody disturbs. */
function result(name: Example, ...args: string[]) {
  return output(commandLine(name, args));
}

/** The one line that a command prints which fails with such a code. */
async function failure(code: number, command: string[]) {
  const { err: [line, ...more], ...rest } = await output(command);
  assertEquals({ ...rest, more }, { code, out: [], more: [] });
  return line;
}

/** Another process that holds the lock on `path`, until its `go`. */
async function held(path: string): Promise<Peer> {
  const holder = stranger(path);
  await holder.line();
  return holder;
}

/** A project with a few files, and some that a build skips. */
function project() {
  const dir = scene();
  const path = resolve(dir.path, "coverage"); // to be skipped inside another
  const skipped = [".git", ".cog/cache", "coverage", "node_modules"];
  for (const sub of ["src", ...skipped]) {
    Deno.mkdirSync(resolve(path, sub), { recursive: true });
    Deno.writeTextFileSync(resolve(path, sub, "file"), "abc");
  }
  Deno.writeTextFileSync(resolve(path, "cog.yaml"), "");
  const cog = resolve(path, ".cog");
  return { ...dir, path, cog, lock: resolve(cog, "cog.lock") };
}

type Project = ReturnType<typeof project>;

async function sha256(bytes: BufferSource): Promise<string> {
  return new Uint8Array(await crypto.subtle.digest("SHA-256", bytes)).toHex();
}

/** Fails unless a build has left these files of a project, and their list. */
async function assertBuilt({ path, cog }: Project, ...files: string[]) {
  const expected = await Promise.all(files.map(async (file) => {
    const bytes = Deno.readFileSync(resolve(path, file));
    const sha = await sha256(bytes);
    const built = Deno.readFileSync(resolve(cog, "dist", file));
    assertEquals(await sha256(built), sha);
    return { path: file, size: bytes.length, sha256: sha };
  }));
  const manifest = resolve(cog, "cache", "manifest.json");
  assertEquals(JSON.parse(Deno.readTextFileSync(manifest)), expected);
  assertEquals(names(cog), ["cache", "cog.lock", "dist"]);
  assertEquals(exists(resolve(cog, "dist", "earlier")), false);
}

const USAGE = {
  build: "Usage: build.ts [PROJECT]",
  cache: "Usage: cache.ts URL [PROJECT]",
  run: "Usage: run.ts [--wait SECONDS] [--] PROJECT COMMAND...",
  wait: "Usage: wait.ts [PROJECT [SECONDS]]",
};

for (const [name, usage] of Object.entries(USAGE) as [Example, string][]) {
  const before = name === "cache" ? ["http://127.0.0.1/"] : [];
  const after = name === "run" ? ["true"] : [];
  const callOn = (project: string) => [...before, project, ...after];

  Deno.test(`${name} prints its usage`, async () => {
    for (const option of ["--help", "-h"]) {
      const help = await result(name, option);
      assertEquals(help, { code: 0, out: [usage], err: [] });
    }
    const wrong = [["--no-such-option"], callOn("-x")];
    if (name !== "run") wrong.push([...callOn("."), "1", "more"]);
    if (name === "cache") wrong.push([], ["no-url"]);
    if (name === "run") wrong.push([], ["."], ["--wait"], ["--wait", "1", "."]);
    for (const seconds of ["soon", "", "-1", "1e9", "9999999"]) {
      if (name === "run") wrong.push(["--wait", seconds, ".", "x"]);
      if (name === "wait") wrong.push([".", seconds]);
    }
    const calls = wrong.map((args) => failure(2, commandLine(name, args)));
    assertEquals(await Promise.all(calls), wrong.map(() => usage));
  });

  Deno.test(`${name} says in one line what is missing`, async () => {
    using dir = scene();
    Deno.writeTextFileSync(resolve(dir.path, "file"), "");
    for (const project of ["missing", "file", "file/below"]) {
      const path = resolve(dir.path, project);
      const line = await failure(1, commandLine(name, callOn(path)));
      assert(line.includes(path), line);
    }
    assertEquals(names(dir.path), ["file"]); // and creates no project
    for (const [missing, granted] of [FILES, FILES.toReversed()]) {
      const args = callOn(dir.path);
      const line = await failure(1, commandLine(name, args, [granted]));
      assert(line.endsWith(`run again with the ${missing} flag`), line);
    }
  });
}

Deno.test("build publishes a project, time after time", async () => {
  using dir = project();
  const dist = resolve(dir.cog, "dist");
  const file = resolve(dir.cog, "cache", "manifest.json");
  const reader = resolve(dir.cog, "cache", "reader"); // of the old manifest
  Deno.writeTextFileSync(file, "old");
  Deno.linkSync(file, reader);
  const long = new Uint8Array(4e6).map((_, i) => i % 251);
  Deno.writeFileSync(resolve(dir.path, "weights"), long, { mode: 0o500 });
  const staged = "Staged files: 3 (4.0 MB)";
  const out = [staged, `Published: ${dist}`, `Manifest: ${file}`];
  for (let times = 1; times <= 3; times++) {
    assertEquals(await result("build", dir.path), { code: 0, out, err: [] });
    await assertBuilt(dir, "cog.yaml", "src/file", "weights");
    const { mode } = Deno.statSync(resolve(dist, "weights"));
    assert(WINDOWS || (mode! & 0o777) === 0o500);
    Deno.writeTextFileSync(resolve(dist, "earlier"), "");
  }
  assertEquals(Deno.readTextFileSync(reader), "old");
});

Deno.test("build streams a file, shows progress", TERMINAL, async () => {
  using dir = project();
  const staged = resolve(dir.cog, "staging", "weights");
  let peak = 0;
  for (let size = 2 ** 28; !peak && size <= 2 ** 32; size *= 4) {
    large(dir.path, size); // so that it takes a while
    const words = commandLine("build", [dir.path]);
    const build = onTerminal("echo $$; exec", words);
    while (await build.more()) {
      if (!build.text.endsWith("MB)")) continue;
      const status = `/proc/${parseInt(build.text)}/status`;
      const look = ["sh", "-c", 'stat -c %s "$0" && grep VmHWM "$1"'];
      const { out: [copied, memory] } = await output([...look, staged, status]);
      if (memory && Number(copied) < size) peak = parseInt(memory.slice(6));
    }
    assert(peak < 2 ** 18, `${peak} kB`);
    assertEquals(await build.ended(), 0);
    const [, shown] = build.text.split("\r\n");
    for (const line of shown.split("\r\x1b[K").slice(1)) {
      assert(/^Staged files: \d \([\d.]+ \w+\)$/.test(line), build.text);
    }
  }
  assert(peak > 0);
});

/** Adds a file to a project, for a build that takes a while. */
function large(project: string, size = 2 ** 28): void {
  using file = Deno.createSync(resolve(project, "weights"));
  file.truncateSync(size);
}

/** Stops a build once a path is in its scratch, and returns its first line. */
async function interrupt(dir: Project, awaited: string) {
  for (let tries = 0; tries < 10; tries++) {
    await using build = example("build", dir.path);
    let ended = false;
    const status = build.ended().finally(() => ended = true);
    await until(() => ended || exists(resolve(dir.cog, "staging", awaited)));
    build.kill("SIGINT");
    const { code } = await status;
    if (code === 0) continue; // it ended before that
    assertEquals(code, 130);
    return await build.line();
  }
  throw new Error("every build ended too early");
}

Deno.test("build survives Ctrl-C", { ignore: WINDOWS }, async () => {
  using dir = project();
  large(dir.path);
  for (let i = 0; i < 1000; i++) {
    const sub = resolve(dir.path, "many", `${i}`);
    Deno.mkdirSync(sub, { recursive: true });
    Deno.writeTextFileSync(resolve(sub, "file"), "");
  }
  for (const awaited of [".", "weights", "many"]) {
    assertEquals(await interrupt(dir, awaited), "Stopped");
    assertEquals(names(dir.cog), ["cache", "cog.lock"]);
  }
});

Deno.test("run passes on arguments, output and exit code, and says in one line what it cannot run", async () => {
  using dir = project();
  const code = "console.log(1); console.error(2); Deno.exit(+Deno.args[0])";
  const expected = { code: 42, out: ["1"], err: ["2"] };
  for (const wait of [[], ["--wait", "0"], ["--"], ["--wait", "60", "--"]]) {
    const args = [...wait, dir.path, ...EVAL, code, "42"];
    assertEquals(await result("run", ...args), expected);
  }
  for (const [code, command] of [[127, "missing"], [126, dir.path]] as const) {
    const line = await failure(code, commandLine("run", [dir.path, command]));
    assert(line.includes(`'${command}'`), line);
  }
  const line = await failure(1, commandLine("run", ["--", "-x", "true"]));
  assert(line.endsWith("'-x'"), line);
});

Deno.test("wait and run give up", async () => {
  using dir = project();
  await using _holder = await held(dir.lock);
  const reason = "Gave up: the lock was not free within 0.2 s";
  const run = ["--wait", "0.2", dir.path, "true"];
  for (const call of [result("wait", dir.path, "0.2"), result("run", ...run)]) {
    const { code, out, err: [_waits, ...more] } = await call;
    assertEquals([code, out, more], [1, [], [reason]]);
  }
});

Deno.test("build, wait and run take turns", POSIX, async () => {
  using dir = project();
  const { path } = dir;
  const lock = `the lock of ${path}`;
  const calls: [string, string, Example, ...string[]][] = [
    [`another build in ${path}`, "Staged files: 2 (3 bytes)", "build", path],
    ["another build, up to 60 s", "Got the lock", "wait", path],
    [lock, "1", "run", path, "echo", "1"],
    [lock, "2", "run", "--wait", "60", path, "echo", "2"],
  ];
  for (const [notice, line, ...call] of calls) {
    await using holder = await held(dir.lock);
    await using waiter = await waiting(`Waiting for ${notice}`, ...call);
    assertEquals(exists(resolve(dir.cog, "staging")), false);
    await holder.go();
    assertEquals(await waiter.line(), line);
    assertEquals((await waiter.ended()).code, 0);
  }
});

const SIGNALS = { SIGHUP: 129, SIGINT: 130, SIGQUIT: 131, SIGTERM: 143 };

/** Says which signals it gets, until it reads a line. */
const HEARING = EVAL.concat(`
  for (const signal of ${JSON.stringify(Object.keys(SIGNALS))}) {
    Deno.addSignalListener(signal, () => console.log(signal));
  }
  console.log(String(Deno.ppid)); // a terminal shows numbers in color
  await Deno.stdin.read(new Uint8Array(1));
  Deno.exit(7);
`);

for (const signal of Object.keys(SIGNALS) as (keyof typeof SIGNALS)[]) {
  Deno.test(`run passes ${signal} on`, APART, async () => {
    using dir = project();
    await using run = withoutTerminal("run", dir.path, ...HEARING);
    assertEquals(await run.line(), `${run.pid}`);
    for (let i = 0; i < 3; i++) {
      run.kill(signal);
      assertEquals(await run.line(), signal);
      assertEquals(isFree(dir.lock), false);
    }
    await run.go();
    assertEquals((await run.ended()).code, 7);
    const command = ["sh", "-c", "echo ready; exec cat"];
    await using dies = withoutTerminal("run", dir.path, ...command);
    assertEquals(await dies.line(), "ready");
    dies.kill(signal);
    assertEquals((await dies.ended()).code, SIGNALS[signal]);
    assertEquals(isFree(dir.lock), true);
  });
}

Deno.test("run ignores a late signal", { ignore: !HAS_PROC }, async () => {
  using dir = project();
  const command = ["sh", "-c", "echo $$; exec cat"];
  for (let i = 0; i < 10; i++) {
    await using run = example("run", dir.path, ...command);
    const child = Number(await run.line());
    run.kill("SIGSTOP");
    Deno.kill(child, "SIGKILL");
    const stat = () => Deno.readTextFileSync(`/proc/${child}/stat`);
    await until(() => stat().includes(") Z "));
    run.kill("SIGTERM"); // it gets to know of both at once
    run.kill("SIGCONT");
    assertEquals((await run.ended()).code, 137);
  }
});

for (const before of ["", "cat |"]) {
  Deno.test(`${before} run does not double Ctrl-C`, TERMINAL, async () => {
    using dir = project();
    const words = commandLine("run", [dir.path, ...HEARING]);
    const run = onTerminal(`trap "" INT QUIT; ${before}`, words);
    await run.shows("\r\n");
    const pid = parseInt(run.text);
    assert(pid > 1, run.text); // a signal to 0 reaches these tests
    for (const [key, signal] of [["\x03", "SIGINT"], ["\x1c", "SIGQUIT"]]) {
      Deno.kill(pid, "SIGSTOP"); // two signals at a time would count as one
      await run.type(key);
      await run.shows(signal);
      Deno.kill(pid, "SIGCONT");
    }
    Deno.kill(pid, "SIGTERM");
    await run.shows("SIGTERM");
    await run.type("\n\x04"); // and the end of the input, for cat
    assertEquals(await run.ended(), 7);
    assertEquals(run.text.match(/SIG/g)!.length, 3, run.text);
  });
}

/** A server of one file, by its name in a cache, that counts its requests. */
async function server(answer: (count: number) => Response | Promise<Response>) {
  const requests = { count: 0 };
  const closing = new AbortController();
  const { addr, finished } = Deno.serve({
    hostname: "127.0.0.1",
    port: 0,
    signal: closing.signal,
    onListen() {},
    onError: () => new Response(null, { status: 500 }), // and not a word
  }, () => answer(++requests.count));
  const url = `http://127.0.0.1:${addr.port}/weights`;
  const name = await sha256(new TextEncoder().encode(url));
  const close = async () => {
    closing.abort();
    await finished;
  };
  return Object.assign(requests, { url, name, [Symbol.asyncDispose]: close });
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
function assertFetched({ cog }: Project, name: string, content = "weights") {
  assertEquals(names(cog), ["cache"]);
  const cached = new Set(names(resolve(cog, "cache")));
  assertEquals(cached, new Set(["file", name, `${name}.lock`]));
  assertEquals(Deno.readTextFileSync(resolve(cog, "cache", name)), content);
}

for (const signal of ["SIGINT", "SIGKILL"] as const) {
  Deno.test(`cache fetches once, after ${signal} too`, POSIX, async () => {
    using dir = project();
    const answer = Promise.withResolvers<Response>();
    await using http = await server((count) =>
      count === 1 ? unfinished() : answer.promise
    );
    await using first = example("cache", http.url, dir.path);
    await until(() => hasScratch(dir));
    await using stack = new AsyncDisposableStack();
    const notice = `Waiting for another fetch of ${http.url}`;
    const wait = () => waiting(notice, "cache", http.url, dir.path);
    const start = async () => stack.use(await wait());
    const others = await Promise.all([start(), start(), start()]);
    // A build, and so the lock of the project, has nothing to do with it.
    assertEquals((await result("wait", dir.path, "0")).code, 0);
    Deno.removeSync(dir.lock);
    first.kill(signal);
    await first.ended();
    assertEquals(hasScratch(dir), signal === "SIGKILL");
    answer.resolve(new Response("weights"));
    for (const cache of others) {
      assertEquals(await cache.line(), resolve(dir.cog, "cache", http.name));
      assertEquals((await cache.ended()).code, 0);
    }
    assertEquals(http.count, 2);
    assertFetched(dir, http.name);
  });
}

Deno.test("cache finds an empty file, even while its lock is held", async () => {
  using dir = project();
  await using http = await server(() => new Response(null, { status: 204 }));
  const file = resolve(dir.cog, "cache", http.name);
  const found = { code: 0, out: [file], err: [] };
  assertEquals(await result("cache", http.url, dir.path), found);
  await using _holder = await held(`${file}.lock`);
  assertEquals(await result("cache", http.url, dir.path), found);
  assertEquals(http.count, 1);
  assertFetched(dir, http.name, "");
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
    const line = await failure(1, commandLine("cache", [http.url, dir.path]));
    assert(line.startsWith(`Cannot fetch ${http.url}: ${reason}`), line);
    assertEquals(names(dir.cog), ["cache"]);
    assertEquals(names(resolve(dir.cog, "cache")), left);
  }
  assertEquals((await result("cache", http.url, dir.path)).code, 0);
  assertEquals(http.count, 3);
  assertFetched(dir, http.name);
});

// The blocks of TypeScript in the README are tests by themselves, with --doc.

const README = Deno.readTextFileSync(local("../README.md"));
const SHELL = [...README.matchAll(/^```sh\r?\n(.*?)^```/gms)]
  .flatMap(([, block]) => block.trim().split(/\r?\n/));

Deno.test("the README's line for a shell waits", FLOCK, async () => {
  using dir = project();
  Deno.mkdirSync(resolve(dir.path, "weights"));
  const copied = resolve(dir.cog, "weights");
  const [line, ...more] = SHELL.filter((line) => line.startsWith("flock "));
  assertEquals(more, []);
  const run = (limit: string) =>
    output(["timeout", limit, "sh", "-c", `cd '${dir.path}' && ${line}`]);
  await using holder = await held(dir.lock);
  assertEquals((await run("0.5")).code, 124);
  assertEquals(exists(copied), false);
  await holder.go();
  await holder.ended();
  assertEquals((await run("30")).code, 0);
  assertEquals(exists(copied), true);
});

Deno.test("build stopped loses no build", { ignore: !HAS_STRACE }, async () => {
  using dir = project();
  await result("build", dir.path);
  const staging = resolve(dir.cog, "staging");
  const stopped = (fault: string) => [
    ...["strace", "-fqq", "-o", "/dev/null", "-P", staging],
    ...["-e", "trace=/^rename", "-e", `inject=/^rename:error=EIO:${fault}`],
    ...commandLine("build", [dir.path]),
  ];
  assertEquals((await output(stopped("signal=SIGKILL:when=1"))).code, 137);
  assertEquals(names(dir.cog).includes("dist"), false);
  await using cog = await open(dir.path);
  await cog.tempPath(); // which sweeps
  await cog.close();
  // This one first moves away what the killed one has staged.
  assert((await failure(1, stopped("when=2"))).includes("dist"));
  await assertBuilt(dir, "cog.yaml", "src/file");
});
