/**
 * The `.cog/` of a project, from {@linkcode open}, or of a new temporary
 * directory, from {@linkcode openTemp}.
 *
 * ```ts
 * import { openTemp } from "@cog/dotcog/dir";
 *
 * await using cog = await openTemp();
 * const manifest = await cog.filePath("cache/manifest.json");
 * await Deno.writeTextFile(manifest, "[]");
 * ```
 *
 * @module
 */

import { ensureDirSync } from "@std/fs/ensure-dir";
import { LOCK_NAME, objection } from "./_dir/names.ts";
import { type Exiting, register, unregister } from "./_dir/exits.ts";
import { createScratch, keepNew, Scratch } from "./_dir/scratch.ts";
import { sweep } from "./_dir/sweep.ts";
import { explain, quietly, quote, withParent } from "./_error.ts";
import { acquire, releaseOf, tryAcquire } from "./_lock/mutex.ts";
import {
  joinName,
  look,
  obstacleTo,
  parentOf,
  peek,
  toPath,
  WINDOWS,
} from "./_path.ts";
import type { LockOptions, Release } from "./lock.ts";

/** The attempt that errors of `tempPath` name. */
const SCRATCH = "create scratch";

/** Options of {@linkcode Dir.tempPath}. */
export interface TempPathOptions {
  /**
   * The name of the directory in `.cog/` that gets the scratch. The default is
   * `.cog/` itself. A missing directory is created.
   *
   * A rename cannot move a file to another disk. So name the directory of the
   * final file if a mount or a symbolic link may put it on another disk.
   */
  dir?: string;
}

/** The name of the state directory inside a project. */
export const NAME = ".cog";

/**
 * Opens the `.cog/` of a project, and creates it if missing.
 *
 * Missing parents are created too, so look up a path that a user typed first. A
 * new `.cog/` gets a `.gitignore` that hides all of it from git. An existing
 * one, such as one that `cog` created, is left as it is. A symbolic link is
 * followed.
 *
 * In a subdirectory of a project, `open(".")` creates a second `.cog/` with
 * another lock, while `cog` searches the parents for `cog.yaml`. The directory
 * of the script does not depend on the working directory:
 * `open(new URL(".", import.meta.url))`.
 *
 * Requires the permissions of {@linkcode Dir}.
 *
 * @param projectDir The project, not its `.cog/`. A relative path is resolved
 * once, from the current working directory. If the path contains `..` and Deno
 * may look up the real path, {@linkcode Dir.projectDir} is that real path.
 * @returns The handle. Close it, best with `await using`.
 *
 * @throws {TypeError} If `projectDir` is neither a path nor a `file:` URL, is
 * empty or a URL in a string, or contains a NUL.
 * @throws {Deno.errors.NotFound} If `projectDir` is relative, and the working
 * directory was deleted. Or if the project, or a parent of it, is a symbolic
 * link whose target is missing.
 * @throws {Deno.errors.AlreadyExists} If `.cog` is not a directory, or is a
 * symbolic link whose target is missing.
 * @throws {Deno.errors.NotADirectory} If the project, or a parent of it, is a
 * file. On Windows, a platform-specific error.
 * @throws {Deno.errors.PermissionDenied} If the user may not create `.cog/`.
 * @throws {Deno.errors.NotCapable} If Deno lacks the permission.
 * @throws {Error} A platform-specific error if the disk is full or read-only.
 *
 * @example Usage
 * ```ts
 * import { open } from "@cog/dotcog/dir";
 *
 * await using cog = await open(".");
 * await cog.lock(); // held until cog closes
 * const staging = await cog.tempPath("staging");
 * await Deno.writeTextFile(`${staging}/artifact`, "staged");
 * ```
 */
// deno-lint-ignore require-await -- so that errors reject, as the signature says
export async function open(projectDir: string | URL): Promise<Dir> {
  const project = toPath(projectDir);
  createRoot(joinName(project, NAME));
  return construct(readable(project));
}

/**
 * Opens a `.cog/` in a new temporary directory, which is deleted on close.
 *
 * `Deno.exit()` and the normal end of the script delete it too. An unhandled
 * signal does not, nor does an uncaught error that does not pass through the
 * `await using` block, such as one in a timer. In a worker, only close is
 * certain to delete it.
 *
 * Requires `--allow-read` and `--allow-write` for the system's temporary
 * directory, and for the link's target if `TMPDIR` leads through a symbolic
 * link.
 *
 * @returns The handle. Close it, best with `await using`.
 *
 * @throws {Deno.errors.NotFound} If the system's temporary directory is missing.
 * @throws {Deno.errors.PermissionDenied} If the user may not write to that
 * directory.
 * @throws {Deno.errors.NotCapable} If Deno lacks the permission.
 * @throws {Error} A platform-specific error if the disk is full or read-only.
 *
 * @example A fixture
 * ```ts
 * import { openTemp } from "@cog/dotcog/dir";
 * import { assertEquals } from "@std/assert/equals";
 *
 * Deno.test("a fixture", async () => {
 *   await using cog = await openTemp();
 *   const weights = await cog.filePath("weights/a.bin");
 *   await Deno.writeFile(weights, new Uint8Array(8));
 *   assertEquals((await Deno.stat(weights)).size, 8);
 * });
 * ```
 */
export async function openTemp(): Promise<Dir> {
  const project = createTempProject();
  await using undo = new AsyncDisposableStack();
  const cog = undo.use(construct(project.path, project));
  createRoot(cog.root);
  undo.move();
  return cog;
}

/** The way to the private constructor: only this module uses it. */
let construct: (project: string, temp?: Scratch) => Dir;

/**
 * A handle on the `.cog/` of a project, from {@linkcode open} or
 * {@linkcode openTemp}.
 *
 * A handle keeps all of its scratch until it closes, so a long-lived program
 * opens one for each piece of work. After `close()` every other method fails with
 * {@linkcode Deno.errors.BadResource}.
 *
 * All methods but {@linkcode Dir.defer} require `--allow-read` and
 * `--allow-write` for `.cog/`, and for the project if the project is missing. A
 * symbolic link requires them for its target. A lock file that exists requires
 * only `--allow-read`.
 *
 * Names are relative to `.cog/`. A `..` removes the part before it from the
 * name, even if that part is a symbolic link. The methods refuse these with a
 * `TypeError`, before they touch the disk:
 *
 * - what is not a string
 * - an absolute path, and a name that begins with a drive letter
 * - a name that leads out by `..`
 * - a name that contains a NUL, or is not well-formed Unicode
 * - `cog.lock`, in upper or lower case, and names below it
 * - a name with a part of the form `.scratch-UUID` or `.scratch-UUID.lock`
 * - on Windows, a name with a part that contains a colon, or a `~` before a
 *   digit, ends in a dot or a space, or is a device such as `nul.txt`
 *
 * @example Usage
 * ```ts
 * import { open } from "@cog/dotcog/dir";
 *
 * await using cog = await open(".");
 * await cog.lock(); // held until cog closes
 * const staging = await cog.tempPath("staging");
 * await Deno.writeTextFile(`${staging}/new`, "[]");
 * await Deno.rename(`${staging}/new`, await cog.filePath("cache/list.json"));
 * ```
 */
export class Dir implements AsyncDisposable {
  /** The absolute path of `.cog/`. */
  readonly root: string;
  /** The absolute path of the project that contains `.cog/`. */
  readonly projectDir: string;

  readonly #lockFile: string;
  readonly #cleanups = new AsyncDisposableStack();
  readonly #closing = new AbortController();
  #swept: Promise<unknown> = Promise.resolve();
  #closed: Promise<void> | undefined;

  static {
    construct = (project, temp) => new Dir(project, temp);
  }

  /** @ignore */
  private constructor(project: string, temp?: Scratch) {
    this.projectDir = project;
    this.root = joinName(project, NAME);
    this.#lockFile = joinName(this.root, LOCK_NAME);
    const release = () => releaseOf(this.#closing.signal, this.#lockFile);
    // These run last, from the bottom up. The deletion of what others have left
    // may take long, so the lock is released before. A lock file that is open
    // may keep its directory from being deleted, so it is closed before.
    if (temp) {
      const lock: Exiting = { path: this.#lockFile, atExit: release };
      register(lock);
      this.#cleanups.defer(() => temp.remove());
      this.#cleanups.defer(() => void unregister(lock));
    }
    this.#cleanups.defer(() => this.#swept.then(() => {}));
    this.#cleanups.defer(release);
  }

  /**
   * Creates a subdirectory, with its parents, unless it exists.
   *
   * Symbolic links are followed.
   *
   * @param name The name of the directory. `""` and `"."` are `.cog/` itself.
   * @returns Its absolute path.
   *
   * @throws {TypeError} If the name is refused, see {@linkcode Dir}.
   * @throws {Deno.errors.BadResource} If this handle is closed.
   * @throws {Deno.errors.AlreadyExists} If a file has the name, or if it leads
   * through a symbolic link whose target is missing.
   * @throws {Deno.errors.NotADirectory} If a parent is a file.
   * @throws {Error} A platform-specific error if the directory cannot be created
   * for another reason.
   *
   * @example Usage
   * ```ts
   * import { openTemp } from "@cog/dotcog/dir";
   *
   * await using cog = await openTemp();
   * const weights = await cog.path("cache/weights");
   * await Deno.writeTextFile(`${weights}/a.bin`, "");
   * ```
   */
  // deno-lint-ignore require-await -- so that errors reject, as the signature says
  async path(name: string): Promise<string> {
    return this.#create(this.#resolve("create a directory", name));
  }

  /**
   * Creates the parent directories of a file, but not the file itself.
   *
   * Symbolic links are followed.
   *
   * @param name The name of the file.
   * @returns Its absolute path.
   *
   * @throws {TypeError} If the name is refused, see {@linkcode Dir}, or is
   * `.cog/` itself.
   * @throws {Deno.errors.BadResource} If this handle is closed.
   * @throws {Deno.errors.AlreadyExists} If the parent is a file, or if the name
   * leads through a symbolic link whose target is missing.
   * @throws {Deno.errors.NotADirectory} If a parent of the parent is a file.
   * @throws {Error} A platform-specific error if the parent cannot be created for
   * another reason.
   *
   * @example Usage
   * ```ts
   * import { openTemp } from "@cog/dotcog/dir";
   *
   * await using cog = await openTemp();
   * const manifest = await cog.filePath("cache/manifest.json");
   * await Deno.writeTextFile(manifest, "[]");
   * ```
   */
  // deno-lint-ignore require-await -- so that errors reject, as the signature says
  async filePath(name: string): Promise<string> {
    const path = this.#resolveBelow("name a file", name);
    this.#create(parentOf(path));
    return path;
  }

  /**
   * Creates an empty scratch directory, which is removed on close.
   *
   * Without a name, the directory is yours alone and needs no lock. Use it for a
   * download, or for a file that is renamed into place when complete. The scratch
   * is in `.cog/`, or in the directory of {@linkcode TempPathOptions.dir}.
   *
   * With a name, `tempPath` first deletes whatever has the name, other programs'
   * scratch too. Hold the lock from that call until this handle closes. Without
   * the lock, two programs with the same name delete or move each other's
   * scratch. Missing parents are created and stay. Do not use the name `build`:
   * `cog` commands remove that directory without the lock when they end, and
   * `cog serve` also at Ctrl-C.
   *
   * Other users may be able to read scratch, since the files of a build must be
   * readable. Call `Deno.chmod` before you write a secret.
   *
   * Closing removes only the directory that was created here. With a name, a
   * replacement stays. Without one, closing may remove a replacement, but no
   * mount of another disk. A directory that was moved away stays, so rename it
   * to publish a build, or to keep scratch for debugging. `Deno.exit()` and the
   * normal end of the script remove scratch in the same way. An unhandled signal
   * leaves it, and so does an uncaught error that does not pass through the
   * `await using` block. In a worker, only close is certain to remove it.
   *
   * A later `tempPath` also sweeps `.cog/` and the directory of its own scratch:
   * it removes nameless scratch that a crash left. Named scratch stays until
   * somebody asks for the same name. Slow sweeps of a directory block a thread
   * for about a hundredth of the time.
   *
   * A process locks a file beside its scratch until it closes the handle or
   * dies. The sweep deletes only scratch whose file is free. On a network disk,
   * the lock protects scratch of another host only if locks exclude other hosts.
   * On a file system without locks, nameless scratch of a crash stays.
   *
   * Closing repeats a deletion for up to 0.3 seconds if somebody still writes
   * into the directory. If the deletion fails, the rest stays, at its old name
   * if possible, or where the error says. Finish your own writes first: a write
   * under way at the close or an exit may create the directory again, and
   * nothing sweeps the new one. Deletion does not follow symbolic links, but
   * enters a mount inside scratch. Deletion is not safe from somebody who swaps
   * a parent for a symbolic link at that moment.
   *
   * Until this handle closes, nameless scratch holds up to one open file, and
   * named scratch up to two. The sanitizers of `deno test` report them if the
   * handle closes in another test.
   *
   * @param target The name of the scratch directory, or the options of one without
   * a name.
   * @returns Its absolute path.
   *
   * @throws {TypeError} If the name is refused, see {@linkcode Dir}, or is
   * `.cog/` itself.
   * @throws {Deno.errors.BadResource} If this handle is closed, or closes during
   * the call.
   * @throws {Deno.errors.NotADirectory} If a parent is a file. With a name,
   * also if a parent is a symbolic link.
   * @throws {Deno.errors.AlreadyExists} If a file has the name of
   * {@linkcode TempPathOptions.dir}.
   * @throws {Deno.errors.PermissionDenied} If the user may not delete what has
   * the name.
   * @throws {Error} A platform-specific error if the directory cannot be created
   * for another reason.
   *
   * @example Stage a build
   * ```ts
   * import { openTemp } from "@cog/dotcog/dir";
   *
   * await using cog = await openTemp();
   * await cog.lock(); // held until cog closes
   * const staging = await cog.tempPath("staging");
   * await Deno.writeTextFile(`${staging}/artifact`, "staged");
   * ```
   *
   * @example Write a file in one step
   * ```ts
   * import { openTemp } from "@cog/dotcog/dir";
   *
   * await using cog = await openTemp();
   * const scratch = await cog.tempPath({ dir: "cache" });
   * await Deno.writeTextFile(`${scratch}/manifest.json`, "[]");
   * const manifest = await cog.filePath("cache/manifest.json");
   * await Deno.rename(`${scratch}/manifest.json`, manifest);
   * ```
   */
  async tempPath(target: string | TempPathOptions = {}): Promise<string> {
    this.#assertOpen(SCRATCH);
    const created = areOptions(target)
      ? this.#createNameless(target)
      : this.#createNamed(target);
    this.#cleanups.defer(() => created.then((it) => it.remove(), () => {}));
    const scratch = await created;
    this.#assertOpen(SCRATCH);
    return scratch.path;
  }

  #createNamed(name: string): Promise<Scratch> {
    const path = this.#resolveBelow(SCRATCH, name);
    refuseLinks(this.root, path);
    createRoot(this.root);
    return this.#createScratch(parentOf(path), path);
  }

  #createNameless({ dir = "" }: TempPathOptions): Promise<Scratch> {
    return this.#createScratch(this.#create(this.#resolve(SCRATCH, dir)));
  }

  #createScratch(directory: string, path?: string): Promise<Scratch> {
    this.#sweep(directory, false);
    const makeRoom = () => this.#sweep(directory, true);
    return createScratch(this.root, directory, path, makeRoom);
  }

  /** Deletes what crashes have left where scratch is created. */
  #sweep(directory: string, isUrgent: boolean): Promise<unknown> {
    const swept = [...new Set([this.root, directory])]
      .map((it) => sweep(it, isUrgent));
    return this.#swept = Promise.all([this.#swept, ...swept]);
  }

  /**
   * Registers a cleanup that close runs.
   *
   * Cleanups run in reverse order of registration, and the removal of each
   * scratch directory takes its turn among them. Each one starts after the one
   * before has settled. All of them run even if some fail. Functions registered
   * here do not run at `Deno.exit()`, or at the end of a script that did not
   * close the handle.
   *
   * Requires no permission.
   *
   * @param cleanup The function to call. It must not call methods of this handle:
   * they are closed by then. It must not wait for the close either. The handle
   * releases its lock afterwards.
   *
   * @throws {Deno.errors.BadResource} If this handle is closed.
   *
   * @example Usage
   * ```ts
   * import { openTemp } from "@cog/dotcog/dir";
   *
   * await using cog = await openTemp();
   * cog.defer(() => console.log("Closing"));
   * ```
   */
  defer(cleanup: () => void | PromiseLike<void>): void {
    this.#assertOpen("register a cleanup");
    this.#cleanups.defer(cleanup);
  }

  /**
   * Acquires the lock that the whole project shares, and waits until it is free.
   *
   * It excludes builds and weight imports of the `cog` program, and every script
   * that asks for it. Everything about {@linkcode lock} holds here.
   *
   * If this handle closes during the wait, the promise rejects at once. But a
   * wait without an `AbortSignal` goes on in the operating system: until the
   * lock is free, it keeps the process alive, and counts as one of the two
   * paths of {@linkcode lock} that may have such waits. The abandoned wait then
   * holds the lock until the event loop turns. A
   * synchronous call that needs the lock, such as `new Deno.Command("cog", {
   * args: ["build"] }).outputSync()`, can hang after such a close. Use an
   * `AbortSignal` if you may close while you wait.
   *
   * @param options The `AbortSignal` that abandons the wait, and a function
   * that announces it.
   * @returns A function that releases the lock; also works with `using`.
   * Closing this handle releases the lock too.
   *
   * @throws {TypeError} If `options` is not an object, or is an `AbortSignal`.
   * @throws {Deno.errors.BadResource} If this handle is closed, or closes before
   * the lock is acquired.
   * @throws {Deno.errors.NotFound} If `.cog/` was deleted.
   * @throws {Deno.errors.PermissionDenied} If the user may not open the lock
   * file. `cog` creates it for its own user: `chmod a+r` lets others in.
   * @throws {Deno.errors.NotCapable} If Deno lacks the permission.
   * @throws The `reason` of the `AbortSignal`, if it is aborted before the lock
   * is acquired.
   *
   * @example Usage
   * ```ts
   * import { openTemp } from "@cog/dotcog/dir";
   *
   * await using cog = await openTemp();
   * using _lock = await cog.lock({
   *   signal: AbortSignal.timeout(60_000),
   *   onWait: () => console.error("Waiting for another build"),
   * });
   * ```
   */
  lock(options?: LockOptions): Promise<Release> {
    return acquire(this.#lockFile, options, this.#closing.signal);
  }

  /**
   * Acquires the lock that the whole project shares if it is free, and never
   * waits.
   *
   * @returns The release, or `null`, as for {@linkcode tryLock}. Closing this
   * handle releases the lock too.
   *
   * @throws The errors of {@linkcode Dir.lock}, except the `reason` of an
   * `AbortSignal`.
   *
   * @example Usage
   * ```ts
   * import { openTemp } from "@cog/dotcog/dir";
   * import { assertEquals } from "@std/assert/equals";
   *
   * await using cog = await openTemp();
   * using _lock = await cog.tryLock();
   * assertEquals(await cog.tryLock(), null);
   * ```
   */
  tryLock(): Promise<Release | null> {
    return tryAcquire(this.#lockFile, this.#closing.signal);
  }

  /**
   * Removes scratch and runs the cleanups of {@linkcode Dir.defer}, releases
   * the lock, waits for the sweeps that `tempPath` began, then deletes the
   * project of {@linkcode openTemp}.
   *
   * A pending {@linkcode Dir.lock} rejects. Every call returns the same
   * promise.
   *
   * @throws The error of a cleanup that failed. If several fail, a
   * {@linkcode SuppressedError} that holds them all.
   *
   * @example Usage
   * ```ts
   * import { openTemp } from "@cog/dotcog/dir";
   *
   * const cog = await openTemp();
   * await cog.close();
   * ```
   */
  close(): Promise<void> {
    return this.#closed ??= this.#close();
  }

  /** The same as {@linkcode Dir.close}, for `await using`. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #close(): Promise<void> {
    this.#closing.abort(this.#closedError("lock"));
    await null; // a cleanup that calls close again gets this same promise
    await this.#cleanups.disposeAsync();
  }

  #assertOpen(tried: string): void {
    if (this.#closing.signal.aborted) throw this.#closedError(tried);
  }

  #closedError(tried: string): Error {
    return new Deno.errors.BadResource(
      `Cannot ${tried} in ${this.root}: the handle is closed; open another, ` +
        `or await all calls before it closes`,
    );
  }

  /** Creates a directory and `.cog/` above it, unless they exist. */
  #create(path: string): string {
    createRoot(this.root);
    try {
      // Of `.cog/` too: Deno then checks its permission.
      Deno.mkdirSync(path, { recursive: true });
      return path;
    } catch (error) {
      throw explain(`Cannot create ${path}${obstacleTo(path)}`, error);
    }
  }

  #resolve(tried: string, name: string): string {
    this.#assertOpen(tried);
    const reason = objection(name, WINDOWS);
    if (reason === undefined) return joinName(this.root, name);
    throw this.#refused(tried, name, reason);
  }

  #resolveBelow(tried: string, name: string): string {
    const path = this.#resolve(tried, name);
    if (path !== this.root) return path;
    throw this.#refused(tried, name, "is the directory itself");
  }

  #refused(tried: string, name: string, reason: string): TypeError {
    return new TypeError(
      `Cannot ${tried} in ${this.root}: the name ${quote(name)} ${reason}`,
    );
  }
}

/** Whether it holds options. Untyped code may pass a URL as a name. */
function areOptions(
  target: string | TempPathOptions,
): target is TempPathOptions {
  return Object.prototype.toString.call(target) === "[object Object]";
}

function createTempProject(): Scratch {
  try {
    const path = toPath(Deno.makeTempDirSync({ prefix: "cog-" }));
    using undo = new DisposableStack();
    const { directory, created } = keepNew(path, undo);
    undo.move();
    return new Scratch(path, created, undefined, directory);
  } catch (error) {
    throw explain(`Cannot create a directory in ${tempDir()}`, error);
  }
}

/** The system's temporary directory, by its path if Deno may know that. */
function tempDir(): string {
  const variable = WINDOWS ? "TMP" : "TMPDIR";
  const { state } = Deno.permissions.querySync({ name: "env", variable });
  const path = state === "granted" ? Deno.env.get(variable) : undefined;
  return path ?? `the system's temporary directory (see ${variable})`;
}

/** The path without `..`, if Deno may look it up. */
function readable(path: string): string {
  if (!path.split("/").includes("..")) return path;
  return peek(path) && quietly(() => Deno.realPathSync(path)) || path;
}

/** Scratch that is reached by a link might be outside the root. */
function refuseLinks(root: string, path: string): void {
  for (let at = parentOf(path); at !== root; at = parentOf(at)) {
    if (quietly(() => Deno.lstatSync(at))?.isSymlink) {
      throw new Deno.errors.NotADirectory(
        `Cannot create scratch ${path}: ${at} is a symbolic link; ` +
          `use a name that does not lead through one`,
      );
    }
  }
}

/** Creates `.cog/`, hidden from git, unless it exists. */
function createRoot(root: string): void {
  const isThere = () => look(root, () => Deno.statSync(root))?.isDirectory;
  try {
    if (isThere()) return;
    withParent(() => Deno.mkdirSync(root), () => ensureDirSync(parentOf(root)));
  } catch (error) {
    if (quietly(isThere)) return; // by now
    throw explain(`Cannot create ${root}${obstacleTo(root)}`, error);
  }
  const ignore = joinName(root, ".gitignore");
  try {
    Deno.writeTextFileSync(ignore, "*\n", { createNew: true });
  } catch (error) {
    if (error instanceof Deno.errors.AlreadyExists) return;
    quietly(() => Deno.removeSync(ignore));
    quietly(() => Deno.removeSync(root));
    throw explain(`Cannot write ${ignore}`, error);
  }
}
