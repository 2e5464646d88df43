import {
  explain,
  isFull,
  isGone,
  isRace,
  quietly,
  renamePath,
} from "../_error.ts";
import { pause } from "../_lock/clock.ts";
import { tryOpen } from "../_lock/file.ts";
import { isSame, joinName, parentOf, WINDOWS } from "../_path.ts";
import { lockNameOf, newScratchName } from "./names.ts";
import {
  newTrashBeside,
  register,
  registeredAt,
  Tree,
  unregister,
} from "./tree.ts";

/** The locked file beside nameless scratch, which shows that its owner lives. */
class Lock {
  constructor(
    readonly scratchPath: string,
    readonly path: string,
    readonly file: Deno.FsFile,
  ) {}

  /** Locks a new file, if the file system has locks. */
  static create(directory: string): Lock | undefined {
    // A sweep may lock a new file first, but hardly three times in a row.
    for (let tries = 0; tries < 3; tries++) {
      const name = newScratchName();
      const path = joinName(directory, lockNameOf(name));
      const file = quietly(() => tryOpen(path));
      if (file) return new Lock(joinName(directory, name), path, file);
      quietly(() => Deno.removeSync(path));
    }
    return undefined;
  }

  delete(): void {
    quietly(() => Deno.removeSync(this.path));
    this.file[Symbol.dispose]();
  }
}

/**
 * A scratch directory. Its owner may delete only the one that was created here.
 */
export class Scratch {
  readonly path: string;
  /** Keeps the identity of the directory from being used again. */
  readonly #directory: Deno.FsFile | undefined;
  /** Stands in for it on Windows, which opens no directories. */
  readonly #created: Deno.FileInfo | undefined;
  readonly #lock: Lock | undefined;

  /** Moves a new directory, which nobody else knows, to the path. */
  constructor(newborn: string, path: string, lock?: Lock) {
    using undo = new DisposableStack();
    undo.defer(() => quietly(() => Deno.removeSync(newborn)));
    if (WINDOWS) this.#created = Deno.lstatSync(newborn);
    else this.#directory = undo.use(Deno.openSync(newborn));
    if (newborn !== path) Deno.renameSync(newborn, path);
    undo.move();
    this.path = path;
    this.#lock = lock;
    // No sweep takes it where another's close moves it, nor does one of 0.2.0.
    quietly(() => this.#directory?.tryLockSync(true));
    const replaced = registeredAt(path);
    if (replaced instanceof Scratch) replaced.#close();
    register(this);
  }

  /** Deletes it, unless another one has taken its place. */
  async remove(): Promise<void> {
    try {
      if (registeredAt(this.path) !== this) return;
      await this.#withdraw()?.delete();
      this.#lock?.delete();
    } catch (error) {
      throw explain(`Cannot remove ${this.path}`, error);
    } finally {
      unregister(this);
      this.#close();
    }
  }

  deleteAtExit(): void {
    // What stays keeps its lock file, so that a later sweep tries again.
    const isDeleted = quietly(() => this.#withdraw()?.deleteAtExit() ?? true);
    if (isDeleted) this.#lock?.delete();
  }

  /** Moves it aside, if it is the owner's. */
  #withdraw(): Tree | undefined {
    const aside = newTrashBeside(this.path); // first: the two steps must be close
    if (!this.#isAt(this.path)) return undefined;
    const tree = Tree.moveAside(this.path, aside);
    if (tree && !this.#isAt(tree.path)) {
      // Another one has taken its place between these two steps.
      tree.putBack();
      return undefined;
    }
    // The deletion of an open directory takes longer.
    this.#directory?.[Symbol.dispose]();
    return tree;
  }

  #isAt(path: string): boolean {
    try {
      const there = Deno.lstatSync(path);
      return isSame(this.#directory?.statSync() ?? this.#created!, there);
    } catch (error) {
      if (isGone(error)) return false;
      throw error;
    }
  }

  #close(): void {
    this.#directory?.[Symbol.dispose]();
    this.#lock?.file[Symbol.dispose]();
  }
}

/** Creates scratch in a directory, at a path that nobody else uses. */
export async function createNameless(
  directory: string,
  swept: Promise<unknown>,
): Promise<Scratch> {
  try {
    return await retry(() => createLocked(directory), () => {}, swept);
  } catch (error) {
    throw explain(`Cannot create scratch in ${directory}`, error);
  }
}

function createLocked(directory: string): Scratch {
  const lock = Lock.create(directory);
  // A sweep looks only for scratch with a lock file beside it.
  const path = lock?.scratchPath ?? joinName(directory, newScratchName());
  try {
    Deno.mkdirSync(path);
    return new Scratch(path, path, lock);
  } catch (error) {
    lock?.delete();
    throw error;
  }
}

/** Creates scratch at a path below the root, and deletes what exists there. */
export async function createNamed(
  root: string,
  path: string,
  swept: Promise<unknown>,
): Promise<Scratch> {
  const create = () => {
    const newborn = newTrashBeside(path);
    try {
      createBelow(root, newborn);
      return new Scratch(newborn, path); // replaces an empty directory
    } catch (error) {
      renamePath(error, newborn, path);
      throw error;
    }
  };
  try {
    return await retry(create, () => Tree.moveAside(path)?.delete(), swept);
  } catch (error) {
    throw explain(`Cannot create scratch ${path}`, error);
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
