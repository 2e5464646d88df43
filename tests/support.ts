/** Other processes, and what the operating system knows of this one. */

import { abortable } from "@std/async/abortable";
import { delay } from "@std/async/delay";
import { fromFileUrl } from "@std/path/from-file-url";
import { resolve } from "@std/path/resolve";
import { quietly } from "../_error.ts";

export { exists } from "./interleavings/port.ts";

export const MOD = import.meta.resolve("../mod.ts");

/** The flag with which a second Deno resolves `@std` as this one does. */
export const RESOLUTION: string[] =
  import.meta.resolve("@std/path/resolve").startsWith("file:")
    ? [`--import-map=${local("offline/import_map.json")}`]
    : [`--config=${local("../deno.json")}`];

/** The path of a file that is named relative to this directory. */
export function local(path: string): string {
  return fromFileUrl(import.meta.resolve(`./${path}`));
}

/**
 * Another process. At the end of the block its input ends, and it is awaited. A
 * test must kill one that goes on regardless.
 */
export class Peer implements AsyncDisposable {
  readonly #process: Deno.ChildProcess;
  readonly #stdin: WritableStreamDefaultWriter<Uint8Array<ArrayBuffer>>;
  readonly #stdout: ReadableStreamDefaultReader<string>;
  #unread = "";

  constructor(command: string, args: string[], options?: Deno.CommandOptions) {
    this.#process = new Deno.Command(command, {
      ...options,
      args,
      stdin: "piped",
      stdout: "piped",
      stderr: "inherit",
    }).spawn();
    this.#stdin = this.#process.stdin.getWriter();
    this.#stdout = this.#process.stdout
      .pipeThrough(new TextDecoderStream()).getReader();
  }

  get pid(): number {
    return this.#process.pid;
  }

  /** The next line that it prints. */
  async line(): Promise<string> {
    let end;
    while ((end = this.#unread.indexOf("\n")) < 0) {
      const { value, done } = await soon(this.#stdout.read());
      if (done) throw new Error(`it ended after "${this.#unread}"`);
      this.#unread += value;
    }
    const line = this.#unread.slice(0, end);
    this.#unread = this.#unread.slice(end + 1);
    return line;
  }

  /** Lets it go on where it waits for a line. */
  async go(): Promise<void> {
    await this.#stdin.write(new TextEncoder().encode("\n"));
  }

  /** How it ended. Fails if it does not do so soon. */
  ended(): Promise<Deno.CommandStatus> {
    return soon(this.#process.status);
  }

  /** Kills it, if it has not ended. */
  kill(signal: Deno.Signal = "SIGKILL"): void {
    quietly(() => this.#process.kill(signal));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#stdin.close().catch(() => {}); // it may have ended before
    await this.#stdout.cancel();
    await this.ended();
  }
}

/**
 * A second Deno that runs `code`, by the command `under`, if any. The
 * code can use the library, `args`, and `heard`, which waits for
 * {@linkcode Peer.go}.
 */
export function script(
  code: string,
  args: string[] = [],
  permissions: string[] = ["--allow-all"],
  { under = [], ...options }: Deno.CommandOptions & { under?: string[] } = {},
): Peer {
  const prelude = `
    import { lock, open, openTemp, tryLock } from "${MOD}";
    const args = Deno.args;
    const heard = () => Deno.stdin.read(new Uint8Array(64));
  `;
  const text = encodeURIComponent(prelude + code);
  const url = `data:application/typescript,${text}`;
  const flags = ["--quiet", ...RESOLUTION, ...permissions];
  const [command, ...rest] = [...under, Deno.execPath(), "run"];
  return new Peer(command, [...rest, ...flags, url, ...args], options);
}

/** A stranger that holds the lock on `path` from its first line to its `go`. */
export function stranger(path: string): Peer {
  return script(
    `using file = Deno.openSync(args[0], { write: true, create: true });
     file.lockSync(true);
     console.log("held");
     await heard();`,
    [path],
  );
}

export function has(command: string): boolean {
  const version = new Deno.Command(command, { args: ["--version"] });
  return quietly(() => version.outputSync()) !== undefined;
}

/** Whether nobody holds the lock on `path`, this process included. */
export function isFree(path: string): boolean {
  using file = Deno.openSync(path, { read: true, write: true });
  return file.tryLockSync(true);
}

/** How many waits of a process are in the system's queue, or fewer during a change. */
export function blocked(pid: number): number {
  const locks = Deno.readTextFileSync("/proc/locks").split("\n");
  return locks.filter((it) => /->/.test(it) && it.includes(` ${pid} `)).length;
}

export const WINDOWS = Deno.build.os === "windows";
export const HAS_PROC = Deno.build.os === "linux";
export const HAS_STRACE = HAS_PROC && has("strace"); // Git for Windows has another
export const IS_ROOT = !WINDOWS && Deno.uid() === 0;
export const CAN_MOUNT = HAS_PROC && IS_ROOT && has("mount") &&
  new Deno.Command("unshare", { args: ["-m", "true"] }).outputSync().success;

/** A command that runs another one on a terminal, where there is one. */
export const ON_TERMINAL = HAS_PROC && has("script") && has("bash")
  ? ["bash", "-c", 'script -qec "${*@Q}" /dev/null', "bash"]
  : undefined;

/** A command that runs another one as a root to whom permissions apply. */
export const POWERLESS = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"];
export const HAS_SETPRIV = IS_ROOT && has("setpriv");

/** A command that runs another one with a disk of its own at the path. */
export function onTmpfs(options: string, path: string): string[] {
  const mount = 'mount -t tmpfs -o "$0" none "$1"; shift; exec "$@"';
  return ["unshare", "-m", "sh", "-c", mount, options, path];
}

export function threads(): number {
  const status = Deno.readTextFileSync("/proc/self/status");
  return Number(/^Threads:\s+(\d+)$/m.exec(status)![1]);
}

/** The files that a process has open, by their paths. */
export function openFiles(pid: number = Deno.pid): string[] {
  return [...Deno.readDirSync(`/proc/${pid}/fd`)]
    .map(({ name }) => `/proc/${pid}/fd/${name}`)
    // The directory just read is closed by now.
    .flatMap((path) => quietly(() => Deno.readLinkSync(path)) ?? []);
}

/** Settles as `promise` does, and fails instead of waiting for ever. */
export function soon<T>(promise: Promise<T>): Promise<T> {
  return abortable(promise, AbortSignal.timeout(30_000));
}

/** Waits until `condition` holds, and fails instead of waiting for ever. */
export async function until(condition: () => boolean): Promise<void> {
  const signal = AbortSignal.timeout(30_000);
  while (!condition()) await delay(2, { signal });
}

/** A new directory, removed at the end of the block. Nothing is at its `file`. */
export function scene(dir?: string) {
  const path = Deno.realPathSync(Deno.makeTempDirSync({ dir }));
  return {
    path,
    file: resolve(path, "x.lock"),
    [Symbol.dispose]: () => Deno.removeSync(path, { recursive: true }),
  };
}

/** Whether links can be created: Windows requires a privilege. */
export const CAN_LINK = quietly(() => {
  using dir = scene();
  const link = resolve(dir.path, "link");
  Deno.symlinkSync(dir.path, link, { type: "dir" });
  return Deno.lstatSync(link).isSymlink;
}) ?? false;

/** The sorted names in a directory. */
export function names(path: string): string[] {
  return [...Deno.readDirSync(path)].map(({ name }) => name).sort();
}

/** Puts another value in the place of a property, to the end of the block. */
export function replace<T, K extends keyof T>(
  object: T,
  key: K,
  value: T[K],
): Disposable {
  const original = object[key];
  object[key] = value;
  return { [Symbol.dispose]: () => object[key] = original };
}

/** Replaces a method of open files, to the end of the block. */
export function replaceOfFiles<K extends "lock" | "statSync" | "tryLockSync">(
  method: K,
  by: (real: Deno.FsFile[K], file: Deno.FsFile) => ReturnType<Deno.FsFile[K]>,
): Disposable {
  const { prototype } = Deno.FsFile;
  const real = prototype[method];
  const replacement = function (this: Deno.FsFile) {
    return by(real.bind(this) as Deno.FsFile[K], this);
  };
  return replace(prototype, method, replacement as Deno.FsFile[K]);
}

/** Counts the waits that begin in the operating system, to the end of the block. */
export function countWaits(): { count: number } & Disposable {
  const counting = replaceOfFiles("lock", (lock) => {
    waits.count++;
    return lock(true);
  });
  const waits = { count: 0, ...counting };
  return waits;
}
