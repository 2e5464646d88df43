import { explain, isFull, isRace, quietly, withParent } from "../_error.ts";
import { pause } from "../_lock/clock.ts";
import { isAlike, isSame, look, obstacleTo, WINDOWS } from "../_path.ts";
import { Claim } from "./claim.ts";
import { type Exiting, register, registeredAt, unregister } from "./exits.ts";
import { Tree } from "./tree.ts";

/** A scratch directory. The owner deletes only the one created here. */
export class Scratch implements Exiting {
  constructor(
    readonly path: string,
    readonly created: Deno.FileInfo,
    /** The right to its path, or to the one to which a deletion moves it. */
    readonly claim?: Claim,
    /** Keeps its identity. Windows opens no directory. */
    readonly directory?: Deno.FsFile,
  ) {
    const replaced = registeredAt(path);
    register(this);
    if (replaced instanceof Scratch) replaced.#free(true);
  }

  /** Deletes it, unless another one has taken its place. */
  async remove(): Promise<void> {
    const tree = unregister(this) ? this.#withdraw() : undefined;
    try {
      await tree?.delete();
      if (tree) this.#free(true);
    } finally {
      this.#free();
    }
  }

  atExit(): void {
    quietly(() => this.#withdraw()?.atExit());
  }

  /** Moves it to its claim, if it is the owner's. */
  #withdraw(): Tree | undefined {
    const { path, claim } = this;
    let tree: Tree | undefined;
    try {
      tree = this.#treeAt(path);
      if (!tree) return void this.#free(true);
      if (claim) tree = tree.moveTo(claim.target);
      if (!tree || tree.path === path || this.#treeAt(tree.path)) return tree;
      // Another one took its place right before the move.
      if (tree.putBack() === path) return undefined;
      throw new Deno.errors.AlreadyExists(
        `it is somebody else's, and could not return to ${path}; ` +
          `move it away before this process ends`,
      );
    } catch (error) {
      const rest = tree?.putBack() ?? path;
      if (rest === path) this.#free();
      throw explain(`Cannot remove ${rest}`, error);
    } finally {
      // The deletion needs as many open files as the tree is deep.
      this.directory?.[Symbol.dispose]();
    }
  }

  /** What has the path, if it is the owner's. */
  #treeAt(path: string): Tree | undefined {
    const own = look(path, () => this.directory?.statSync() ?? this.created);
    const tree = Tree.at(path);
    const isOwn = this.path === this.claim?.target ? isAlike : isSame;
    return own && tree?.found && isOwn(own, tree.found) ? tree : undefined;
  }

  #free(isDone?: boolean): void {
    this.directory?.[Symbol.dispose]();
    this.claim?.release(isDone);
  }
}

/**
 * Creates scratch in a directory, and deletes whatever is at its path. Without a
 * path, it gets one that nobody else uses. It creates parents, but not the root.
 */
export async function createScratch(
  root: string,
  directory: string,
  path: string | undefined,
  sweep: () => Promise<unknown>,
): Promise<Scratch> {
  const tries = { full: 1, race: 19 };
  let claim: Claim | undefined;
  const makeWay = async (error: unknown) => {
    // Without a claim, this means that a parent is a file.
    if (!claim && error instanceof Deno.errors.NotADirectory) throw error;
    const there = () => path ? Tree.at(path) : undefined;
    if (isFull(error) && tries.full-- > 0) {
      await sweep();
      await there()?.delete();
    } else if (isRace(error) && tries.race-- > 0) {
      // Others may try as regularly as this does.
      if (tries.race < 18) await pause((19 - tries.race) * Math.random());
      const isLost = !path || error instanceof Deno.errors.NotFound;
      if (isLost) claim = claim?.release();
      if (claim) await there()?.moveTo(claim.target)?.delete();
    } else throw error;
  };
  try {
    for (;;) {
      try {
        claim ??= withParent(() => Claim.create(directory), () => {
          Deno.statSync(root);
          Deno.mkdirSync(directory, { recursive: true });
        });
        Deno.mkdirSync(claim.target);
        if (path) return moveNew(path, claim);
        const created = Deno.lstatSync(claim.target);
        return new Scratch(claim.target, created, claim);
      } catch (error) {
        await makeWay(error);
      }
    }
  } catch (error) {
    claim?.release();
    const at = path ?? `in ${directory}`;
    throw explain(`Cannot create scratch ${at}${obstacleTo(directory)}`, error);
  }
}

/** Moves new scratch to its name. */
function moveNew(path: string, claim: Claim): Scratch {
  using undo = new DisposableStack();
  const { directory, created } = keepNew(claim.target, undo);
  // This keeps sweeps off if another's close moves it, then dies.
  quietly(() => directory?.tryLockSync(true));
  Deno.renameSync(claim.target, path); // replaces an empty directory
  undo.move();
  return new Scratch(path, created, claim, directory);
}

/** Keeps the identity of a new directory, which `undo` removes. */
export function keepNew(path: string, undo: DisposableStack) {
  undo.defer(() => quietly(() => Deno.removeSync(path)));
  const directory = WINDOWS ? undefined : undo.use(Deno.openSync(path));
  return { directory, created: directory?.statSync() ?? Deno.lstatSync(path) };
}
