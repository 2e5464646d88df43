/**
 * The directory `.cog/` of a project: {@linkcode open} it, or take one in a new
 * temporary directory with {@linkcode openTemp}.
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

import { ensureDir } from "@std/fs/ensure-dir";
import { SEPARATOR } from "@std/path/constants";
import { fromFileUrl } from "@std/path/from-file-url";
import { normalize } from "@std/path/normalize";
import { resolve } from "@std/path/resolve";
import { lock, type LockOptions, type Release, tryLock } from "./lock.ts";

/** The name of the state directory inside a project. */
export const NAME = ".cog";

/** The name of the lock file inside the state directory. */
const LOCK_NAME = "cog.lock";

/**
 * Opens `.cog/` in a project, and makes it, and its parents, where missing.
 * One that it makes gets a `.gitignore` that hides all of it from git; one that
 * is there already is left as it is. A symbolic link is followed.
 *
 * Requires `--allow-read` and `--allow-write` for the project, and where it
 * really is if the path leads there by a symbolic link.
 *
 * @param projectDir The project, made where missing. A relative path is taken
 * from the working directory of now, whatever that becomes later.
 * @returns The handle, to be closed: best with `await using`.
 *
 * @throws {TypeError} If `projectDir` is a URL of another scheme than `file:`
 * or has a NUL in it.
 * @throws {Deno.errors.AlreadyExists} If `.cog` is not a directory.
 * @throws {Deno.errors.PermissionDenied} If it may not be made, and
 * {@linkcode Deno.errors.NotCapable} if Deno may not; a full or read-only disk
 * gives whatever error the platform has for it.
 *
 * @example Usage
 * ```ts
 * import { open } from "@cog/dotcog/dir";
 *
 * await using cog = await open(".");
 * await cog.lock(); // until cog closes
 * const build = await cog.tempPath("build");
 * await Deno.writeTextFile(`${build}/artifact`, "staged");
 * ```
 */
export async function open(projectDir: string | URL): Promise<Dir> {
  const project = resolve(
    projectDir instanceof URL ? fromFileUrl(projectDir) : projectDir,
  );
  await makeRoot(project);
  return makeDir(project, false);
}

/**
 * Opens `.cog/` in a new temporary directory, which is removed with all that is
 * in it when the handle is closed, or at `Deno.exit()` or the end of the script,
 * but not where an uncaught error or a signal ends the process. One made in a
 * worker is certain to be removed only on close.
 *
 * Requires `--allow-read` and `--allow-write` for the system's temporary
 * directory.
 *
 * @returns The handle, to be closed: best with `await using`.
 *
 * @throws {Deno.errors.PermissionDenied} If the directory may not be made, and
 * {@linkcode Deno.errors.NotCapable} if Deno may not.
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
  const project = makeTemp();
  const dir = makeDir(project, true); // from here on, an exit removes it
  try {
    await makeRoot(project);
  } catch (error) {
    await dir.close();
    throw error;
  }
  return dir;
}

// Only these two make a Dir: TypeScript keeps others from its constructor, and
// the key does so where there is none.
let makeDir: (project: string, temporary: boolean) => Dir;
const KEY = Symbol();

/**
 * A handle on a project's `.cog/`, from {@linkcode open} or
 * {@linkcode openTemp}.
 *
 * The names that its methods take are relative to `.cog/` and stay inside it.
 * A name that is absolute, begins with a drive letter, leaves the directory by
 * `..` or holds a NUL is refused, as is `cog.lock` in any case and all below
 * it, and a part of the form `.scratch-new-UUID` or `.scratch-old-UUID`; on
 * Windows also a part with a colon or `~1` in it, with a dot or space at its
 * end, or like `nul.txt` a device's, for it may be another name there. Nothing
 * on disk is touched then.
 *
 * Once it is being closed, every method but `close` fails with
 * {@linkcode Deno.errors.BadResource}.
 */
export class Dir implements AsyncDisposable {
  /** The absolute path of `.cog/`. */
  readonly root: string;
  /** The absolute path of the project, the directory that `.cog/` is in. */
  readonly projectDir: string;

  readonly #cleanups = new AsyncDisposableStack();
  readonly #closing = new AbortController();
  readonly #removals = new Map<string, () => string>();
  #closed: Promise<void> | undefined;
  #held: Release | undefined;
  readonly #waits = new Set<(reason: Error) => void>();

  static {
    makeDir = (project, temporary) => new Dir(KEY, project, temporary);
  }

  private constructor(key: symbol, project: string, temporary: boolean) {
    if (key !== KEY) {
      throw new TypeError("Cannot construct a Dir: call open() or openTemp()");
    }
    this.projectDir = project;
    this.root = resolve(project, NAME);
    // How a close ends, the last line first.
    this.#cleanups.defer(() => this.#held?.());
    this.#cleanups.defer(() => removeEventListener("unload", this.#removeNow));
    if (temporary) this.#removeOnClose(project, () => project);
  }

  /**
   * Makes a subdirectory, with its parents, unless it exists. Symbolic links on
   * the way are followed.
   *
   * Requires `--allow-read` and `--allow-write` for the project.
   *
   * @param name The name of the directory: `""` and `"."` are `.cog/` itself.
   * @returns Its absolute path.
   *
   * @throws {TypeError} If the name is refused, see {@linkcode Dir}.
   * @throws {Deno.errors.BadResource} If this handle is closed.
   * @throws {Deno.errors.AlreadyExists} If a file has the name, and whatever
   * other error the platform has where the directory cannot be made.
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
    return makePath(this.#resolve("make a directory", name));
  }

  /**
   * Makes the parent directories of a file, but not the file itself. Symbolic
   * links on the way are followed.
   *
   * Requires `--allow-read` and `--allow-write` for the project.
   *
   * @param name The name of the file.
   * @returns Its absolute path.
   *
   * @throws {TypeError} If the name is refused, see {@linkcode Dir}, or is
   * `.cog/` itself.
   * @throws {Deno.errors.BadResource} If this handle is closed.
   * @throws {Deno.errors.NotADirectory} If the parent is a file, and whatever
   * other error the platform has where it cannot be made.
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
    const path = this.#resolve("make room for a file", name, true);
    makePath(resolve(path, ".."));
    return path;
  }

  /**
   * Makes an empty scratch directory. Whatever had its name is wiped first; it
   * is removed on close, or at `Deno.exit()` or the end of the script, but not
   * where an uncaught error or a signal ends the process. One made in a worker
   * is certain to be removed only on close. Parents are made and stay.
   *
   * On close it is removed only if it is still the directory that was made
   * here: one that somebody else made since under the same name is theirs and
   * stays. Hold the lock while you use a scratch, and best until this handle is
   * closed: without it, the next one who takes the same name wipes yours.
   *
   * Deleting never follows a symbolic link: one that has the scratch's own name
   * is removed as a link, and one on the way there is refused. A wipe moves the
   * old directory aside in one step, as `.scratch-old-` and a UUID beside it,
   * then deletes that; what a crash or a missing permission leaves there is
   * deleted by the next `tempPath` beside it that can, or an hour later where it
   * is not certain that nobody uses it.
   *
   * Requires `--allow-read` and `--allow-write` for the project.
   *
   * @param name The name of the scratch directory.
   * @returns Its absolute path.
   *
   * @throws {TypeError} If the name is refused, see {@linkcode Dir}, or is
   * `.cog/` itself.
   * @throws {Deno.errors.BadResource} If this handle is closed.
   * @throws {Deno.errors.NotADirectory} If the way there leads through a file
   * or a symbolic link, and whatever other error the platform has where the
   * directory cannot be made.
   *
   * @example Usage
   * ```ts
   * import { openTemp } from "@cog/dotcog/dir";
   *
   * await using cog = await openTemp();
   * await cog.lock(); // until cog closes
   * const build = await cog.tempPath("build");
   * await Deno.writeTextFile(`${build}/artifact`, "staged");
   * ```
   */
  async tempPath(name: string): Promise<string> {
    const path = this.#resolve("make scratch", name, true);
    refuseLinks(this.root, path);
    const parent = makePath(resolve(path, ".."));
    // Listed before: what is there later may be this scratch, which another one
    // that closes has moved away by mistake and is about to put back.
    const leftovers = findLeftovers(parent);
    const withdraw = makeScratch(path, leftovers);
    const swept = sweep(leftovers);
    this.#cleanups.defer(() => swept); // a close waits for it
    this.#removeOnClose(path, withdraw);
    await swept;
    this.#assertOpen("make scratch");
    return path;
  }

  /**
   * Registers a cleanup for close. Cleanups run in reverse order of their
   * registration, scratch directories among them, each after the one before it
   * has settled, and all of them even if some fail. They do not run at
   * `Deno.exit()`, nor at the end of a script that did not close the handle.
   *
   * Requires no permission.
   *
   * @param cleanup What to call. It cannot use this handle any more, nor wait
   * for its close, but a lock that the handle holds is still held.
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
   * Acquires the lock of the whole project, waiting for as long as it takes. It
   * excludes every other handle, script and `cog` command on this project that
   * asks for it. Whatever {@linkcode lock} promises holds here.
   *
   * If this handle closes during the wait, the promise rejects at once. But a
   * wait without a signal goes on in the operating system: it keeps the process
   * alive until the lock is free, and holds the lock then until the event loop
   * turns. A synchronous call that needs the lock, such as
   * `new Deno.Command("cog", { args: ["build"] }).outputSync()`, hangs after such
   * a close. Use a signal if you may close while you wait.
   *
   * Requires `--allow-read` and `--allow-write` for the project.
   *
   * @param options The signal that abandons the wait, and whom to tell of it.
   * @returns The release. Closing this handle releases the lock too.
   *
   * @throws {Deno.errors.BadResource} If this handle is closed, also while it
   * waits.
   * @throws {Deno.errors.NotFound} If `.cog/` was deleted.
   * @throws {Deno.errors.PermissionDenied} If the lock file may not be opened,
   * and {@linkcode Deno.errors.NotCapable} if Deno may not.
   * @throws The signal's own `reason`, once the signal is aborted.
   *
   * @example Usage
   * ```ts
   * import { openTemp } from "@cog/dotcog/dir";
   *
   * await using cog = await openTemp();
   * using _lock = await cog.lock({
   *   signal: AbortSignal.timeout(60_000),
   *   onWait: () => console.log("Waiting for another build"),
   * });
   * ```
   */
  async lock(options: LockOptions = {}): Promise<Release> {
    this.#assertOpen("lock");
    const { signal, onWait } = options;
    const acquired = lock(this.#lockFile, {
      signal: signal && AbortSignal.any([signal, this.#closing.signal]),
      onWait: () => {
        this.#assertOpen("lock");
        onWait?.();
        this.#assertOpen("lock");
      },
    });
    const closed = Promise.withResolvers<never>();
    this.#waits.add(closed.reject);
    try {
      const release = await Promise.race([acquired, closed.promise]);
      return this.#hold(release, signal);
    } catch (error) {
      acquired.then((release) => release(), () => {});
      throw error;
    } finally {
      this.#waits.delete(closed.reject);
    }
  }

  /**
   * Acquires the lock of the whole project if it is free, and never waits.
   *
   * Requires `--allow-read` and `--allow-write` for the project.
   *
   * @returns The release, or `null` if the lock is taken. Closing this handle
   * releases the lock too.
   *
   * @throws What {@linkcode Dir.lock} throws where it cannot lock at all.
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
  async tryLock(): Promise<Release | null> {
    this.#assertOpen("lock");
    const release = await tryLock(this.#lockFile);
    return release && this.#hold(release);
  }

  /**
   * Runs the cleanups, see {@linkcode Dir.defer}, then releases the lock if
   * this handle holds it. However often it is called, all of that is done once
   * and every call has the same outcome.
   *
   * Requires `--allow-read` and `--allow-write` for the project, if there is
   * scratch to remove.
   *
   * @throws The error of a cleanup that failed; where several did, a
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
    const reason = this.#closedError("lock");
    this.#closing.abort(reason);
    for (const abandon of this.#waits) abandon(reason);
    await null; // a cleanup that calls close again gets this same promise
    await this.#cleanups.disposeAsync();
  }

  #assertOpen(tried: string): void {
    if (this.#closing.signal.aborted) throw this.#closedError(tried);
  }

  #closedError(tried: string): Error {
    return new Deno.errors.BadResource(
      `Cannot ${tried} in ${this.root}: it is closed, open it again`,
    );
  }

  get #lockFile(): string {
    return resolve(this.root, LOCK_NAME);
  }

  /** Leaves the release to close, too; if it comes too late, releases. */
  #hold(release: Release, signal?: AbortSignal): Release {
    for (const end of [signal, this.#closing.signal]) {
      if (!end?.aborted) continue;
      release();
      throw end.reason;
    }
    return this.#held = release;
  }

  /**
   * Has the directory at `path` removed on close, and at the end of the process
   * if that comes first: from where `withdraw` says that it is by then.
   */
  #removeOnClose(path: string, withdraw: () => string): void {
    const replaced = this.#removals.get(path);
    this.#removals.set(path, withdraw);
    addEventListener("unload", this.#removeNow);
    this.#cleanups.defer(async () => {
      if (this.#removals.get(path) !== withdraw) return; // it was replaced
      try {
        await Deno.remove(withdraw(), { recursive: true });
      } catch (error) {
        if (isGone(error)) return;
        throw explained(`Cannot remove ${path}`, error);
      }
    });
    replaced?.(); // lets go of what it keeps open
  }

  readonly #removeNow = (): void => {
    for (const withdraw of this.#removals.values()) {
      try {
        Deno.removeSync(withdraw(), { recursive: true });
      } catch {
        // Gone already, or nobody is left to be told.
      }
    }
  };

  /** The path of a name, if this is open: not the root where it must be `below`. */
  #resolve(tried: string, name: string, below = false): string {
    this.#assertOpen(tried);
    const path = normalize(name);
    const parts = path.split(SEPARATOR).filter((part) => part && part !== ".");
    const reason = name.includes("\0")
      ? "holds a NUL"
      : path.startsWith(SEPARATOR)
      ? "is not relative"
      : /^[a-z]:/i.test(name)
      ? "begins with a drive letter"
      : parts[0] === ".."
      ? "leads outside"
      : parts[0]?.toLowerCase() === LOCK_NAME
      ? "is the lock file's"
      : below && parts.length === 0
      ? "is the directory itself"
      : parts.some((part) => LEFTOVER.test(part))
      ? "is reserved"
      : Deno.build.os === "windows" && parts.some((part) => ALIAS.test(part))
      ? "is another name on Windows"
      : undefined;
    if (reason === undefined) return resolve(this.root, ...parts);
    throw new TypeError(
      `Cannot ${tried} in ${this.root}: the name "${name}" ${reason}`,
    );
  }
}

// From here on, what does not make a project or delete whole trees is
// synchronous: for a single step that is quicker than a trip to the thread pool,
// and neither a close of the same handle nor an exit can come in between two.

/** Windows' other names: streams, short names, ignored ends, devices. */
const ALIAS =
  /:|~\d|[. ]$|^(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[\d¹²³]) *(\.|$)/i;

function makeTemp(): string {
  try {
    return resolve(Deno.makeTempDirSync({ prefix: "cog-" }));
  } catch (error) {
    throw explained("Cannot make a temporary directory", error);
  }
}

async function makeRoot(project: string): Promise<void> {
  const root = resolve(project, NAME);
  const ignore = resolve(root, ".gitignore");
  try {
    try {
      Deno.mkdirSync(root);
    } catch (error) {
      if (!(error instanceof Deno.errors.NotFound)) throw error;
      await ensureDir(project);
      Deno.mkdirSync(root);
    }
  } catch (error) {
    if (quietly(() => Deno.statSync(root))?.isDirectory) return;
    throw explained(`Cannot make ${root}`, error);
  }
  try {
    Deno.writeTextFileSync(ignore, "*\n", { createNew: true });
  } catch (error) {
    if (error instanceof Deno.errors.AlreadyExists) return;
    quietly(() => Deno.removeSync(ignore));
    quietly(() => Deno.removeSync(root));
    throw explained(`Cannot write ${ignore}`, error);
  }
}

function makePath(path: string): string {
  try {
    Deno.mkdirSync(path, { recursive: true });
    return path;
  } catch (error) {
    throw explained(`Cannot make directory ${path}`, error);
  }
}

function refuseLinks(root: string, path: string): void {
  for (let way = resolve(path, ".."); way !== root; way = resolve(way, "..")) {
    if (!quietly(() => Deno.lstatSync(way))?.isSymlink) continue;
    throw new Deno.errors.NotADirectory(
      `Cannot make scratch below ${way}: it is a symbolic link, and what is ` +
        `beyond it is not deleted; name a directory that is not behind one`,
    );
  }
}

/**
 * What is beside scratch for a moment: `new` is on its way to its place or from
 * there, and empty or maybe somebody's; `old` is for anybody to delete.
 */
const LEFTOVER =
  /^\.scratch-(new|old)-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;

/** A name that no one else uses, in the same directory and file system. */
function beside(path: string, state: "new" | "old"): string {
  return resolve(path, "..", `.scratch-${state}-${crypto.randomUUID()}`);
}

/** The paths of what crashes left, none where the directory is unreadable. */
function findLeftovers(dir: string): string[] {
  return quietly(() => [...Deno.readDirSync(dir)])
    ?.filter(({ name }) => LEFTOVER.test(name))
    .map(({ name }) => resolve(dir, name)) ?? [];
}

/**
 * Makes a scratch directory, adds what it replaces to the `leftovers`, and gives
 * the function that withdraws it: moves it out of the way, if it is still there,
 * and says where it is to be deleted.
 */
function makeScratch(path: string, leftovers: string[]): () => string {
  for (let tries = 1;; tries++) {
    try {
      return tryScratch(path, leftovers);
    } catch (error) {
      // Without the lock, others can come in between any two steps of it.
      if (tries < 20) continue;
      throw explained(`Cannot make scratch ${path}`, error);
    }
  }
}

function tryScratch(path: string, leftovers: string[]): () => string {
  // Made under a name of its own, so that what is marked is what was made, and
  // moved into place last, so that a failure before that leaves all as it was.
  const fresh = beside(path, "new");
  using undo = new DisposableStack();
  Deno.mkdirSync(fresh);
  undo.defer(() => quietly(() => Deno.removeSync(fresh)));
  const made = Deno.lstatSync(fresh);
  // As long as it is open, no other directory gets its inode number. NTFS gives
  // none twice, and Windows would let nobody make an open one anew.
  const pin = Deno.build.os === "windows"
    ? undefined
    : undo.use(quietly(() => Deno.openSync(fresh)));
  const isOurs = ({ dev, ino, birthtime }: Deno.FileInfo) =>
    dev === made.dev && ino === made.ino &&
    (pin || birthtime?.getTime() === made.birthtime?.getTime());
  try {
    Deno.renameSync(fresh, path);
  } catch { // most often there is nothing, or an empty directory, at the path
    const wiped = beside(path, "old");
    undo.defer(() => quietly(() => Deno.renameSync(wiped, path)));
    moveAside(path, wiped);
    Deno.renameSync(fresh, path);
    leftovers.push(wiped);
  }
  undo.move(); // the pin is for the withdrawal to close

  let old: string | undefined;
  return () => {
    if (old) return old;
    old = beside(path, "old");
    using _pin = pin;
    try {
      if (!isOurs(Deno.lstatSync(path))) return old;
      Deno.renameSync(path, fresh);
      // Another may have replaced it between those two: it is theirs. Until
      // that is clear, the name is one that is not swept with its files.
      const ours = isOurs(Deno.lstatSync(fresh));
      Deno.renameSync(fresh, ours ? old : path);
    } catch (error) {
      if (!isGone(error)) throw error;
    }
    return old;
  };
}

/** Takes what has the name out of the way of a scratch that is to replace it. */
function moveAside(path: string, aside: string): void {
  try {
    Deno.renameSync(path, aside);
  } catch (error) {
    if ((error as { code?: string }).code === "EXDEV") {
      // Overlay file systems do not rename a directory of a lower layer, such
      // as one that a container image brought along.
      Deno.removeSync(path, { recursive: true });
    } else if (!isGone(error)) {
      throw error;
    }
  }
}

/** Deletes quietly: others may do the same, and the next one tries again. */
async function sweep(leftovers: string[]): Promise<void> {
  await Promise.allSettled(leftovers.map(async (path) => {
    if (/\.scratch-old-[-0-9a-f]+$/.test(path) || await isForgotten(path)) {
      await Deno.remove(path, { recursive: true });
    }
  }));
}

/** Whether a crash left it there an hour ago, so that nobody can be using it. */
async function isForgotten(path: string): Promise<boolean> {
  const { ctime } = await Deno.lstat(path);
  return ctime !== null && Date.now() - ctime.getTime() > 60 * 60 * 1000;
}

/** Whether there is nothing at the path any more. */
function isGone(error: unknown): boolean {
  return error instanceof Deno.errors.NotFound ||
    error instanceof Deno.errors.NotADirectory;
}

function quietly<T>(attempt: () => T): T | undefined {
  try {
    return attempt();
  } catch {
    return undefined;
  }
}

/** The same class of error, saying what was tried. */
function explained(tried: string, error: unknown): Error {
  const { constructor, message } = error as Error;
  return new (constructor as ErrorConstructor)(`${tried}: ${message}`, {
    cause: error,
  });
}
