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
  const permissions = name === "cache" || name === "run"
    ? ["--allow-all"]
    : ["--allow-read", "--allow-write"];
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
  const quoted = commandLine(name, args).map((arg) =>
    `'${arg.replaceAll("'", `'\\''`)}'`
  );
  const process = new Deno.Command("script", {
    args: ["-qec", quoted.join(" "), "/dev/null"],
    stdin: "piped",
    stdout: "piped",
  }).spawn();
  const stdin = process.stdin.getWriter();
  const stdout = process.stdout.pipeThrough(new TextDecoderStream())
    .getReader();
  let text = "";
  return {
    /** Reads until the screen has had the text so many times. */
    async shows(part: string, times = 1): Promise<void> {
      while (text.split(part).length <= times) {
        const { value, done } = await soon(stdout.read());
        if (done) throw new Error(`it ended after ${JSON.stringify(text)}`);
        text += value;
      }
    },
    type: (keys: string) => stdin.write(new TextEncoder().encode(keys)),
    /** All that the screen has had, and how it ended. */
    async ended() {
      for (;;) {
        const { value, done } = await soon(stdout.read());
        if (done) break;
        text += value;
      }
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

/** A second Deno that runs `code`, as the command of an example. */
function evaluating(code: string): string[] {
  return [Deno.execPath(), "eval", "--quiet", code];
}

/** A project with a few files, and some that a build skips. */
function project(): { path: string; cog: string; lock: string } & Disposable {
  const dir = scene();
  for (const sub of ["src", ".git", "node_modules", ".cog/cache"]) {
    Deno.mkdirSync(resolve(dir.path, sub), { recursive: true });
    Deno.writeTextFileSync(resolve(dir.path, sub, "file"), "abc");
  }
  Deno.writeTextFileSync(resolve(dir.path, "cog.yaml"), "");
  const cog = resolve(dir.path, ".cog");
  return { ...dir, cog, lock: resolve(cog, "cog.lock") };
}

async function sha256(bytes: BufferSource): Promise<string> {
  return new Uint8Array(await crypto.subtle.digest("SHA-256", bytes)).toHex();
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

const CALLS: [Example, (project: string) => string[]][] = [
  ["build", (project) => [project]],
  ["cache", (project) => ["http://127.0.0.1/", project]],
  ["run", (project) => [project, Deno.execPath()]],
  ["wait", (project) => [project]],
];

for (const [name, args] of CALLS) {
  Deno.test(`${name} creates no project, and says so in one line`, async () => {
    using dir = scene();
    const missing = resolve(dir.path, "missing");
    const file = resolve(dir.path, "file");
    Deno.writeTextFileSync(file, "");
    for (const path of [missing, file, resolve(file, "below")]) {
      assertEquals(await result(name, ...args(path)), {
        code: 2,
        out: [],
        err: [`${path} is not a readable directory`],
      });
    }
    assertEquals(names(dir.path), ["file"]);
  });
}

const USAGE: [Example, string[], string][] = [
  ["cache", [], "cache.ts URL [PROJECT]"],
  ["cache", ["no-url"], "cache.ts URL [PROJECT]"],
  ["run", [], "run.ts [--wait SECONDS] PROJECT COMMAND..."],
  ["run", ["."], "run.ts [--wait SECONDS] PROJECT COMMAND..."],
  ["run", ["--wait"], "run.ts [--wait SECONDS] PROJECT COMMAND..."],
  ["run", ["--wait", "1", "."], "run.ts [--wait SECONDS] PROJECT COMMAND..."],
  ...["soon", "", "-1", "1e9", "9999999"].flatMap((seconds): typeof USAGE => [
    [
      "run",
      ["--wait", seconds, ".", "x"],
      "run.ts [--wait SECONDS] PROJECT COMMAND...",
    ],
    ["wait", [".", seconds], "wait.ts [PROJECT [SECONDS]]"],
  ]),
];

Deno.test("a wrong call gets one line of usage", async () => {
  const results = USAGE.map(([name, args]) => result(name, ...args));
  for (const [i, [, , usage]] of USAGE.entries()) {
    assertEquals(await results[i], {
      code: 2,
      out: [],
      err: [`Usage: ${usage}`],
    });
  }
});

Deno.test("build --help is no error", async () => {
  assertEquals(await result("build", "--help"), {
    code: 0,
    out: ["Usage: build.ts [PROJECT]"],
    err: [],
  });
});

Deno.test("build stages a project, and leaves only its manifest", async () => {
  using dir = project();
  const manifest = resolve(dir.cog, "cache", "manifest.json");
  const staging = resolve(dir.cog, "staging");
  const reader = resolve(dir.cog, "cache", "reader"); // of the old manifest
  Deno.writeTextFileSync(manifest, "old");
  Deno.linkSync(manifest, reader);
  assertEquals(await result("build", dir.path), {
    code: 0,
    out: [
      "Staged files: 2 (3 bytes)",
      `${manifest} stays, ${staging} is removed`,
    ],
    err: [],
  });
  assertEquals(JSON.parse(Deno.readTextFileSync(manifest)), MANIFEST);
  assertEquals(Deno.readTextFileSync(reader), "old");
  assertEquals(names(dir.cog), ["cache", "cog.lock"]);
});

Deno.test("build stages a large file without its bytes in memory", {
  ignore: !HAS_PROC,
}, async () => {
  using dir = scene();
  const size = 2 ** 28;
  large(dir.path, size);
  const [command, ...args] = commandLine("build", [dir.path]);
  const process = new Deno.Command(command, { args, stdout: "null" }).spawn();
  let ended = false;
  const status = process.status.finally(() => ended = true);
  let peak = 0;
  await until(() => {
    peak = Math.max(peak, ended ? 0 : memoryPeak(process.pid));
    return ended;
  });
  assertEquals((await status).code, 0);
  assert(peak > 0 && peak < size, `${peak} bytes`);

  const manifest = resolve(dir.path, ".cog", "cache", "manifest.json");
  const bytes = Deno.readFileSync(resolve(dir.path, "weights"));
  assertEquals(JSON.parse(Deno.readTextFileSync(manifest)), [
    { path: "weights", size, sha256: await sha256(bytes) },
  ]);
});

/** The most memory that a process had so far, in bytes: 0 after its end. */
function memoryPeak(pid: number): number {
  try {
    const status = Deno.readTextFileSync(`/proc/${pid}/status`);
    return Number(/^VmHWM:\s+(\d+) kB$/m.exec(status)?.[1] ?? 0) * 1024;
  } catch {
    return 0;
  }
}

Deno.test("build shows its progress on a terminal, in one line", {
  ignore: !HAS_TERMINAL,
}, async () => {
  using dir = project();
  let shown: string[] = [];
  for (let size = 2 ** 28; shown.length < 2 && size <= 2 ** 32; size *= 4) {
    large(dir.path, size); // so that it takes a while
    const build = onTerminal("build", dir.path);
    const { code, text } = await build.ended();
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
  const path = resolve(project, "weights");
  Deno.writeTextFileSync(path, "");
  Deno.truncateSync(path, size);
}

Deno.test(
  "build says so where it must wait for another, two run one after the other",
  async () => {
    using dir = project();
    await using holder = stranger(dir.lock);
    await holder.line();
    await using first = example("build", dir.path);
    await using second = example("build", dir.path);
    for (const build of [first, second]) {
      assertEquals(
        await build.line(),
        `Waiting for another build in ${dir.path}`,
      );
    }
    assertEquals(exists(resolve(dir.cog, "staging")), false);
    await holder.go();
    for (const build of [first, second]) {
      assertEquals((await build.ended()).code, 0);
      assertEquals(await build.line(), "Staged files: 2 (3 bytes)");
    }
    assertEquals(names(dir.cog), ["cache", "cog.lock"]);
  },
);

/**
 * Sends a signal to a build as soon as the path in its scratch exists, and
 * returns its first line. A build that ends before that gets another try.
 */
async function interrupt(
  dir: { path: string; cog: string },
  awaited: string,
  signal: Deno.Signal,
): Promise<string | undefined> {
  for (let tries = 0; tries < 10; tries++) {
    await using build = exampleWithErrors("build", dir.path);
    let ended = false;
    const status = build.ended().finally(() => ended = true);
    await until(() => ended || exists(resolve(dir.cog, "staging", awaited)));
    build.kill(signal);
    const { code } = await status;
    if (code === 0) continue;
    assertEquals(code, signal === "SIGINT" ? 130 : 137);
    return await build.line().catch(() => undefined);
  }
  throw new Error("every build ended too early");
}

Deno.test("build leaves no scratch after Ctrl-C", {
  ignore: WINDOWS,
}, async () => {
  using dir = project();
  large(dir.path);
  for (const awaited of [".", "weights"]) {
    assertEquals(await interrupt(dir, awaited, "SIGINT"), "Stopped");
    assertEquals(names(dir.cog), ["cache", "cog.lock"]);
  }
  for (let i = 0; i < 1000; i++) {
    const sub = resolve(dir.path, "many", `${i}`);
    Deno.mkdirSync(sub, { recursive: true });
    Deno.writeTextFileSync(resolve(sub, "file"), "");
  }
  assertEquals(await interrupt(dir, "many", "SIGINT"), "Stopped");
  assertEquals(names(dir.cog), ["cache", "cog.lock"]);
});

Deno.test("build succeeds where a killed one has left its scratch", {
  ignore: WINDOWS,
}, async () => {
  using dir = project();
  large(dir.path);
  assertEquals(await interrupt(dir, "weights", "SIGKILL"), undefined);
  assertEquals(exists(resolve(dir.cog, "staging", "weights")), true);
  Deno.removeSync(resolve(dir.path, "weights"));
  assertEquals((await result("build", dir.path)).code, 0);
  const manifest = resolve(dir.cog, "cache", "manifest.json");
  assertEquals(JSON.parse(Deno.readTextFileSync(manifest)), MANIFEST);
  assertEquals(names(dir.cog), ["cache", "cog.lock"]);
});

Deno.test("wait gets a free lock", async () => {
  using dir = scene();
  for (const seconds of [[], ["0"], ["1.5"]]) {
    assertEquals(await result("wait", dir.path, ...seconds), {
      code: 0,
      out: ["The lock is held here"],
      err: [],
    });
  }
});

Deno.test("wait says that it waits, then gets the lock", async () => {
  using dir = project();
  await using holder = stranger(dir.lock);
  await holder.line();
  await using wait = example("wait", dir.path);
  assertEquals(await wait.line(), "Waiting for another build, up to 60 s");
  await holder.go();
  assertEquals(await wait.line(), "The lock is held here");
  assertEquals((await wait.ended()).code, 0);
});

Deno.test("wait says that it waits, and gives up", async () => {
  using dir = project();
  await using holder = stranger(dir.lock);
  await holder.line();
  assertEquals(await result("wait", dir.path, "0.2"), {
    code: 1,
    out: ["Waiting for another build, up to 0.2 s"],
    err: ["Gave up: another build took more than 0.2 s"],
  });
});

Deno.test("run passes on arguments, output and exit code", async () => {
  using dir = project();
  for (const wait of [[], ["--wait", "0"], ["--wait", "60"]]) {
    const command = evaluating(
      `console.log(1); console.error(2); Deno.exit(Number(Deno.args[0]))`,
    );
    assertEquals(await result("run", ...wait, dir.path, ...command, "42"), {
      code: 42,
      out: ["1"],
      err: ["2"],
    });
  }
});

Deno.test("run says in one line that a command does not exist", async () => {
  using dir = project();
  const { code, out, err } = await result("run", dir.path, "no-such-command");
  assertEquals({ code, out, lines: err.length }, {
    code: 127,
    out: [],
    lines: 1,
  });
  assert(err[0].includes("'no-such-command'"), err[0]);
});

Deno.test("run says in one line that a file is no command", {
  ignore: WINDOWS,
}, async () => {
  using dir = project();
  const file = resolve(dir.path, "cog.yaml");
  const { code, out, err } = await result("run", dir.path, file);
  assertEquals({ code, out, lines: err.length }, {
    code: 126,
    out: [],
    lines: 1,
  });
  assert(err[0].includes(file), err[0]);
});

Deno.test("run says that it waits, and gives up", async () => {
  using dir = project();
  await using holder = stranger(dir.lock);
  await holder.line();
  const args = ["--wait", "0.2", dir.path, ...evaluating("console.log(1)")];
  assertEquals(await result("run", ...args), {
    code: 1,
    out: [],
    err: [
      `Waiting for the lock of ${dir.path}`,
      "Gave up: the lock was not free within 0.2 s",
    ],
  });
});

Deno.test("run says that it waits, then runs the command", {
  ignore: WINDOWS,
}, async () => {
  using dir = project();
  for (const wait of [[], ["--wait", "60"]]) {
    await using holder = stranger(dir.lock);
    await holder.line();
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
  Deno.test(`run passes ${signal} on, and holds the lock to the end`, {
    ignore: WINDOWS,
  }, async () => {
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

  Deno.test(`run exits as a shell does if ${signal} ends the command`, {
    ignore: WINDOWS,
  }, async () => {
    using dir = project();
    const command = ["sh", "-c", "echo ready; exec cat"];
    await using run = example("run", dir.path, ...command);
    assertEquals(await run.line(), "ready");
    run.kill(signal);
    assertEquals((await run.ended()).code, signal === "SIGINT" ? 130 : 143);
    assertEquals(isFree(dir.lock), true);
  });
}

Deno.test("run takes no notice of a signal that comes after the command", {
  ignore: !HAS_PROC,
}, async () => {
  using dir = project();
  for (let i = 0; i < 10; i++) {
    const command = ["sh", "-c", "echo $$; exec cat"];
    await using run = exampleWithErrors("run", dir.path, ...command);
    const child = Number(await run.line());
    run.kill("SIGSTOP");
    Deno.kill(child, "SIGKILL");
    await until(() =>
      Deno.readTextFileSync(`/proc/${child}/stat`).includes(") Z ")
    );
    run.kill("SIGTERM"); // it gets to know of both at once
    run.kill("SIGCONT");
    assertEquals((await run.ended()).code, 137);
  }
});

Deno.test("run lets Ctrl-C on a terminal reach the command once", {
  ignore: !HAS_TERMINAL,
}, async () => {
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

/** A server that counts its requests. */
function server(answer: (count: number) => Response | Promise<Response>) {
  let count = 0;
  const closing = new AbortController();
  const { addr, finished } = Deno.serve({
    hostname: "127.0.0.1",
    port: 0,
    signal: closing.signal,
    onListen() {},
    onError: () => new Response(null, { status: 500 }), // and not a word
  }, () => answer(++count));
  return {
    url: `http://127.0.0.1:${addr.port}/weights`,
    get count() {
      return count;
    },
    async [Symbol.asyncDispose]() {
      closing.abort();
      await finished;
    },
  };
}

/** An answer whose connection is cut once a project has scratch for it. */
function cut({ cog }: { cog: string }): Response {
  return new Response(
    new ReadableStream({
      start: (controller) => controller.enqueue(new Uint8Array(1024)),
      async pull() {
        await until(() => names(cog).length === 2);
        throw new Error("cut");
      },
    }),
  );
}

/** What a project holds after one fetch from the server. */
async function assertFetched(
  { cog }: { cog: string },
  { url }: { url: string },
): Promise<void> {
  const name = await sha256(new TextEncoder().encode(url));
  assertEquals(names(cog), ["cache"]);
  const cache = resolve(cog, "cache");
  assertEquals(names(cache), ["file", name, `${name}.lock`].sort());
  assertEquals(Deno.readTextFileSync(resolve(cache, name)), "weights");
  assertEquals(isFree(resolve(cache, `${name}.lock`)), true);
}

Deno.test("cache fetches a file once for five processes", {
  ignore: WINDOWS,
}, async () => {
  using dir = project();
  const answer = Promise.withResolvers<void>();
  await using http = server(async () => {
    await answer.promise;
    return new Response("weights");
  });
  await using stack = new AsyncDisposableStack();
  const first = stack.use(exampleWithErrors("cache", http.url, dir.path));
  await until(() => http.count === 1);
  const others = Array.from(
    { length: 4 },
    () => stack.use(exampleWithErrors("cache", http.url, dir.path)),
  );
  for (const cache of others) {
    const line = await cache.line();
    assertEquals(line, `Waiting for another fetch of ${http.url}`);
  }
  // A build, and so the lock of the project, has nothing to do with it.
  assertEquals((await result("wait", dir.path, "0")).code, 0);
  Deno.removeSync(dir.lock);
  answer.resolve();
  const name = await sha256(new TextEncoder().encode(http.url));
  for (const cache of [first, ...others]) {
    assertEquals(await cache.line(), resolve(dir.cog, "cache", name));
    assertEquals((await cache.ended()).code, 0);
  }
  assertEquals(http.count, 1);
  await assertFetched(dir, http);
});

Deno.test("cache finds a file that exists, even while its lock is held", async () => {
  using dir = project();
  await using http = server(() => new Response("weights"));
  const name = await sha256(new TextEncoder().encode(http.url));
  const file = resolve(dir.cog, "cache", name);
  const found = { code: 0, out: [file], err: [] };
  assertEquals(await result("cache", http.url, dir.path), found);
  {
    await using holder = stranger(`${file}.lock`);
    await holder.line();
    assertEquals(await result("cache", http.url, dir.path), found);
    await holder.go();
  }
  assertEquals(http.count, 1);
  await assertFetched(dir, http);
});

Deno.test("cache leaves nothing in place if a fetch fails, and the next succeeds", async () => {
  using dir = project();
  await using http = server((count) => {
    if (count === 1) return new Response("no", { status: 500 });
    return count === 2 ? cut(dir) : new Response("weights");
  });
  const name = await sha256(new TextEncoder().encode(http.url));
  const leftovers = ["file", `${name}.lock`].sort();
  for (const reason of ["the server answers 500", "error reading a body"]) {
    const { code, out, err } = await result("cache", http.url, dir.path);
    assertEquals({ code, out, lines: err.length }, {
      code: 1,
      out: [],
      lines: 1,
    });
    assert(err[0].startsWith(`Cannot fetch ${http.url}: ${reason}`), err[0]);
    assertEquals(names(dir.cog), ["cache"]);
    assertEquals(names(resolve(dir.cog, "cache")), leftovers);
  }
  assertEquals((await result("cache", http.url, dir.path)).code, 0);
  assertEquals(http.count, 3);
  await assertFetched(dir, http);
});

/** An answer that never ends. */
function endless(): Response {
  return new Response(
    new ReadableStream({
      start: (controller) => controller.enqueue(new Uint8Array(1024)),
    }),
  );
}

Deno.test("cache leaves no scratch after Ctrl-C", {
  ignore: WINDOWS,
}, async () => {
  using dir = project();
  await using http = server(endless);
  await using cache = example("cache", http.url, dir.path);
  await until(() => names(dir.cog).length === 2);
  cache.kill("SIGINT");
  assertEquals((await cache.ended()).code, 130);
  assertEquals(names(dir.cog), ["cache"]);
});

Deno.test("cache takes over from a killed one, and sweeps its scratch", {
  ignore: WINDOWS,
}, async () => {
  using dir = project();
  await using http = server((count) =>
    count === 1 ? endless() : new Response("weights")
  );
  await using first = example("cache", http.url, dir.path);
  await until(() => names(dir.cog).length === 2);
  await using second = exampleWithErrors("cache", http.url, dir.path);
  await second.line(); // it waits
  first.kill();
  assertEquals((await second.ended()).code, 0);
  assertEquals(http.count, 2);
  await assertFetched(dir, http);
});

Deno.test("cache gets an empty file of an answer without a body", async () => {
  using dir = project();
  await using http = server(() => new Response(null, { status: 204 }));
  const { code, out } = await result("cache", http.url, dir.path);
  assertEquals(code, 0);
  assertEquals(Deno.statSync(out[0]).size, 0);
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
  const [line, ...more] = SHELL.filter((line) => line.startsWith("flock "));
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
