import { explain, isFull, isGone, isRace, quietly } from "../_error.ts";
import { pause } from "../_lock/clock.ts";
import { isCurrent, isSame, openFile, tryFile } from "../_lock/file.ts";
import { joinName, parentOf, WINDOWS } from "../_path.ts";
import { newScratchName, newTrashName } from "./names.ts";
import { register, registeredAt, Tree, unregister } from "./tree.ts";

/** An empty directory with one owner, which deletes it. */
export abstract class Scratch {
  /**
   * @param path Where it is.
   * @param file What the owner keeps open as long as it is there.
   */
  constructor(readonly path: string, readonly file: Deno.FsFile | undefined) {
    register(this);
  }

  /** Gives it up. The result must be deleted, if it is still the owner's. */
  protected abstract withdraw(): Tree | undefined;

  async remove(): Promise<void> {
    using _file = this.file;
    if (registeredAt(this.path) !== this) return; // another has taken its place
    unregister(this);
    try {
      await this.withdraw()?.delete();
    } catch (error) {
      throw explain(`Cannot remove ${this.path}`, error);
    }
  }

  deleteAtExit(): void {
    quietly(() => this.withdraw()?.deleteAtExit());
  }
}

/** Scratch that lives as long as its owner holds a lock on the file beside it. */
class NamelessScratch extends Scratch {
  readonly #lockPath: string | undefined;

  constructor(path: string, lock?: Deno.FsFile, lockPath?: string) {
    super(path, lock);
    this.#lockPath = lockPath;
  }

  protected withdraw(): Tree {
    return new Tree(this.path, this.path, this.#lockPath);
  }

  static create(directory: string): Scratch {
    const { name, lockName } = newScratchName();
    const lockPath = joinName(directory, lockName);
    const lock = lockNewFile(lockPath);
    if (!lock) {
      // No lock file has ever been beside this name, so nobody sweeps it.
      const path = joinName(directory, newScratchName().name);
      Deno.mkdirSync(path);
      return new NamelessScratch(path);
    }
    try {
      const path = joinName(directory, name);
      Deno.mkdirSync(path);
      return new NamelessScratch(path, lock, lockPath);
    } catch (error) {
      quietly(() => Deno.removeSync(lockPath));
      lock.close();
      throw error;
    }
  }
}

/** Locks a new file, or leaves none where the file system has no locks. */
function lockNewFile(path: string): Deno.FsFile | undefined {
  using opened = new DisposableStack();
  const file = opened.use(openFile(path));
  try {
    if (tryFile(path, file) && isCurrent(path, file)) {
      opened.move();
      return file;
    }
  } catch {
    quietly(() => Deno.removeSync(path));
    return undefined;
  }
  throw new Deno.errors.Busy(`${path} is being swept`);
}

/** Scratch that is the owner's while the directory at its path is the open one. */
class NamedScratch extends Scratch {
  /** Stands in for the open directory on Windows, which opens none. */
  readonly #created: Deno.FileInfo;

  constructor(
    path: string,
    directory: Deno.FsFile | undefined,
    created: Deno.FileInfo,
  ) {
    super(path, directory);
    this.#created = created;
  }

  protected withdraw(): Tree | undefined {
    if (!this.#isAt(this.path)) return undefined;
    const tree = Tree.moveAside(this.path);
    if (!tree) return undefined;
    if (!this.#isAt(tree.path)) {
      // Another one has taken its place between these two steps.
      tree.putBack();
      return undefined;
    }
    // The deletion of an open directory takes longer.
    this.file?.[Symbol.dispose]();
    return tree;
  }

  #isAt(path: string): boolean {
    try {
      return isSame(
        this.file?.statSync() ?? this.#created,
        Deno.lstatSync(path),
      );
    } catch (error) {
      if (isGone(error)) return false;
      throw error;
    }
  }

  /** Begins where nobody else can take its place until it is open. */
  static create(root: string, path: string): Scratch {
    const parent = parentOf(path);
    const newborn = joinName(parent, newTrashName());
    createBelow(root, newborn);
    using undo = new DisposableStack();
    undo.defer(() => quietly(() => Deno.removeSync(newborn)));
    const created = Deno.lstatSync(newborn);
    const directory = undo.use(WINDOWS ? undefined : Deno.openSync(newborn));
    Deno.renameSync(newborn, path);
    undo.move();
    const replaced = registeredAt(path);
    const scratch = new NamedScratch(path, directory, created);
    if (replaced instanceof Scratch) replaced.file?.[Symbol.dispose]();
    return scratch;
  }
}

/** Creates a directory and its missing parents, but not the root. */
function createBelow(root: string, path: string): void {
  try {
    Deno.mkdirSync(path);
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
    Deno.statSync(root);
    Deno.mkdirSync(path, { recursive: true });
  }
}

/** Creates scratch in a directory, at a path that nobody else uses. */
export async function createNameless(
  directory: string,
  swept: Promise<unknown>,
): Promise<Scratch> {
  try {
    return await retry(
      () => NamelessScratch.create(directory),
      () => {},
      swept,
    );
  } catch (error) {
    throw explain(`Cannot create scratch in ${directory}`, error);
  }
}

/** Creates scratch at a path below the root, and deletes what exists there. */
export async function createNamed(
  root: string,
  path: string,
  swept: Promise<unknown>,
): Promise<Scratch> {
  try {
    // An empty directory at the path is replaced.
    const create = () => NamedScratch.create(root, path);
    return await retry(create, () => Tree.moveAside(path)?.delete(), swept);
  } catch (error) {
    throw explain(`Cannot create scratch ${path}`, error);
  }
}

async function retry(
  create: () => Scratch,
  makeWay: () => Promise<void> | void,
  swept: Promise<unknown>,
): Promise<Scratch> {
  for (let tries = 1;; tries++) {
    try {
      return create();
    } catch (error) {
      const retries = isFull(error) ? 1 : isRace(error) ? 19 : 0;
      if (tries > retries) throw error;
      // Leftovers may fill the disk. Others may try as regularly as this does.
      if (isFull(error)) await swept;
      else if (tries > 1) await pause(tries * Math.random());
    }
    await makeWay();
  }
}

/** Scratch that is reached by a link might be outside the root. */
export function refuseLinks(root: string, path: string): void {
  let parent = parentOf(path);
  while (parent !== root) {
    if (quietly(() => Deno.lstatSync(parent))?.isSymlink) {
      throw new Deno.errors.NotADirectory(
        `Cannot create scratch ${path}: ${parent} is a symbolic link; ` +
          `use a name that does not lead through one`,
      );
    }
    parent = parentOf(parent);
  }
}
