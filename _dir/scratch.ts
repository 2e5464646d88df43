import {
  explain,
  isFull,
  isRace,
  isStuck,
  quietly,
  withParent,
} from "../_error.ts";
import { pause } from "../_lock/clock.ts";
import { isSame, look, obstacleTo, parentOf, WINDOWS } from "../_path.ts";
import { Claim } from "./claim.ts";
import { type Exiting, register, registeredAt, unregister } from "./exits.ts";
import { Tree } from "./tree.ts";

/** A scratch directory. The owner deletes only the one created here. */
export class Scratch implements Exiting {
  constructor(
    readonly path: string,
    readonly created: Deno.FileInfo,
    /** The right to the path to which a deletion moves it, if any. */
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
    try {
      const tree = unregister(this) ? this.#withdraw() : undefined;
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
    let isOwn = false;
    let tree: Tree | undefined;
    try {
      if (!this.#isAt(path)) return void this.#free(true);
      tree = Tree.at(path)?.moveTo(claim?.target ?? path, isStuck);
      // Another one may have taken its place right before the move.
      isOwn = tree !== undefined && this.#isAt(tree.path);
      return isOwn ? tree : undefined;
    } catch (error) {
      throw explain(`Cannot remove ${path}`, error);
    } finally {
      if (!isOwn) tree?.putBack();
      // The deletion needs as many open files as the tree is deep.
      this.directory?.[Symbol.dispose]();
    }
  }

  #isAt(path: string): boolean {
    const own = look(path, () => this.directory?.statSync() ?? this.created);
    const there = look(path);
    return own !== undefined && there !== undefined && isSame(own, there);
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
      if (error instanceof Deno.errors.NotFound) claim = claim?.release();
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
        return createAt(path ?? claim.target, claim);
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

/** Creates it under the claim, and moves it to the path. */
function createAt(path: string, claim: Claim): Scratch {
  const { target } = claim;
  using undo = new DisposableStack();
  Deno.mkdirSync(target);
  const { directory, created } = keepNew(target, undo);
  // This keeps sweeps off if another's close moves it, then dies.
  quietly(() => directory?.tryLockSync(true));
  if (path !== target) Deno.renameSync(target, path); // replaces an empty directory
  undo.move();
  return new Scratch(path, created, claim, directory);
}

/** Keeps the identity of a new directory, which `undo` removes. */
export function keepNew(path: string, undo: DisposableStack) {
  undo.defer(() => quietly(() => Deno.removeSync(path)));
  const directory = WINDOWS ? undefined : undo.use(Deno.openSync(path));
  return { directory, created: directory?.statSync() ?? Deno.lstatSync(path) };
}

/** Scratch that is reached by a link might be outside the root. */
export function refuseLinks(root: string, path: string): void {
  for (let at = parentOf(path); at !== root; at = parentOf(at)) {
    if (quietly(() => Deno.lstatSync(at))?.isSymlink) {
      throw new Deno.errors.NotADirectory(
        `Cannot create scratch ${path}: ${at} is a symbolic link; ` +
          `use a name that does not lead through one`,
      );
    }
  }
}
