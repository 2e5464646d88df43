import { delay } from "@std/async/delay";
import { explain, isGone, quietly } from "./_error.ts";
import { isSame } from "./_identity.ts";
import { joinName, parentOf, WINDOWS } from "./_path.ts";

const RECURSIVE = { recursive: true };

const RESERVED = /^\.scratch-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i;

/** Whether a name has the form that only scratch has. */
export function isReserved(name: string): boolean {
  return RESERVED.test(name);
}

/** A path in `parent` that nobody else uses. */
function reserve(parent: string): string {
  return joinName(parent, `.scratch-${crypto.randomUUID()}`);
}

/** An empty directory with one owner. */
export interface Scratch {
  readonly path: string;
  /** Removes the directory, if it is still the one at the path. */
  remove(): Promise<void>;
}

/**
 * Creates scratch: at `path`, after deleting what exists there, or else at a
 * reserved path in `root`. Sweeps crash leftovers in `root` and beside `path`.
 */
export async function createScratch(
  root: string,
  path?: string,
): Promise<Scratch> {
  const parent = path === undefined ? root : parentOf(path);
  const swept = Promise.all([...new Set([root, parent])].map(sweep));
  try {
    for (let tries = 1;; tries++) {
      if (path !== undefined) await wipe(path);
      try {
        const own = reserve(parent);
        Deno.statSync(root); // or else mkdir would create the root as well
        Deno.mkdirSync(own, RECURSIVE);
        return place(own, path ?? own, swept);
      } catch (error) {
        const retries = isFull(error) ? 1 : isRace(error) ? 19 : 0;
        if (tries > retries) throw error;
        // Leftovers may fill the disk. Others may try as regularly as this does.
        await (isFull(error) ? swept : delay(tries * Math.random()));
      }
    }
  } catch (error) {
    await swept;
    throw explain(`Cannot create scratch ${path ?? `in ${root}`}`, error);
  }
}

/** Moves what exists at the path aside in one step, then deletes it. */
async function wipe(path: string): Promise<void> {
  const aside = moveAside(path, reserve(parentOf(path)));
  if (aside) await deleteTree({ aside, path });
}

/**
 * Locks a new directory for its owner, and moves it from its `own` reserved path
 * to its `path`. Synchronous, so that no exit comes in between.
 *
 * The open file is locked while the scratch lives, so that others can tell
 * whether a directory at a reserved path is still in use.
 */
function place(own: string, path: string, swept: Promise<unknown>): Scratch {
  using undo = new DisposableStack();
  undo.defer(() => quietly(() => Deno.removeSync(own)));
  const created = Deno.lstatSync(own);
  const handle = undo.use(openDirectory(own));
  if (handle && tryLock(handle) === false) {
    throw new Deno.errors.Busy(`${own} is being swept`);
  }
  Deno.renameSync(own, path);
  undo.move();

  let tree: Tree | undefined;
  let withdrawn = false;
  const withdraw = () => {
    if (withdrawn) return tree;
    withdrawn = true;
    if (isAt(path)) {
      const aside = moveAside(path, own);
      if (aside && isAt(aside)) return tree = { aside, path };
      // Another one took its place between these two steps, and gets it back.
      if (aside) quietly(() => Deno.renameSync(aside, path));
    }
    handle?.[Symbol.dispose]();
    return undefined;
  };
  const isAt = (place: string) => {
    try {
      return isSame(handle?.statSync() ?? created, Deno.lstatSync(place));
    } catch (error) {
      if (isGone(error)) return false;
      throw error;
    }
  };

  const replaced = exits.get(path);
  atExit(path, withdraw);
  replaced?.(); // has lost its place, and so closes its handle

  return {
    path,
    async remove() {
      await swept;
      try {
        const tree = withdraw();
        if (tree) await deleteTree(tree);
      } catch (error) {
        throw explain(`Cannot remove ${path}`, error);
      } finally {
        handle?.[Symbol.dispose]();
        forget(path, withdraw);
      }
    },
  };
}

/** A tree to delete at `aside`, or else to return to `path`. */
interface Tree {
  readonly aside: string;
  readonly path: string;
}

/** Returns the tree that must be deleted, if any. */
type Withdraw = () => Tree | undefined;

/** The trees that an exit deletes, by their paths. */
const exits = new Map<string, Withdraw>();

function deleteAll(): void {
  for (const withdraw of exits.values()) {
    const tree = quietly(withdraw);
    if (!tree) continue;
    try {
      Deno.removeSync(tree.aside, RECURSIVE);
    } catch {
      putBack(tree);
    }
  }
}

/** Registers a tree that an exit must delete. */
function atExit(path: string, withdraw: Withdraw): void {
  exits.set(path, withdraw);
  addEventListener("unload", deleteAll);
}

function forget(path: string, withdraw: Withdraw): void {
  if (exits.get(path) === withdraw) exits.delete(path);
  if (exits.size === 0) removeEventListener("unload", deleteAll);
}

/** Registers a tree that an exit deletes. The result deletes it earlier. */
export function ownTree(path: string): () => Promise<void> {
  const tree = { aside: path, path };
  atExit(path, () => tree);
  return async () => {
    try {
      await deleteTree(tree);
    } catch (error) {
      throw explain(`Cannot remove ${path}`, error);
    }
  };
}

/** Deletes a tree, or moves what is left of it back to its path. */
async function deleteTree(tree: Tree): Promise<void> {
  const withdraw = () => tree;
  atExit(tree.aside, withdraw);
  try {
    await Deno.remove(tree.aside, RECURSIVE);
  } catch (error) {
    if (isGone(error)) return;
    putBack(tree);
    throw error;
  } finally {
    forget(tree.aside, withdraw);
  }
}

/** Moves what is left of a tree back to its path, if that is free. */
function putBack({ aside, path }: Tree): void {
  if (!exists(path)) quietly(() => Deno.renameSync(aside, path));
}

/** Moves what exists at the path; returns where it is then, if anywhere. */
function moveAside(path: string, aside: string): string | undefined {
  try {
    Deno.renameSync(path, aside);
    return aside;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return undefined;
    // An overlay cannot move a directory of a lower layer, a full btrfs none.
    if (codeOf(error) === "EXDEV" || isFull(error)) return path;
    throw error;
  }
}

/** Deletes what nobody uses any more at the reserved paths in a directory. */
async function sweep(parent: string): Promise<void> {
  const entries = await Array.fromAsync(Deno.readDir(parent)).catch(() => []);
  for (const { name, isDirectory, isFile, isSymlink } of entries) {
    const path = joinName(parent, name);
    if (!isReserved(name) || exits.has(path)) continue;
    try {
      using handle = isDirectory ? openDirectory(path) : undefined;
      const isFree = handle && tryLock(handle);
      // Owned scratch is always a directory: the rest awaits its deletion.
      if (isDirectory ? isFree ?? isOld(path) : isFile || isSymlink) {
        await Deno.remove(path, RECURSIVE);
      }
    } catch {
      // Its owner may live.
    }
  }
}

/** Opens a directory, where the system can. */
function openDirectory(path: string): Deno.FsFile | undefined {
  return WINDOWS ? undefined : Deno.openSync(path);
}

/** Acquires the lock: `undefined` where directories have no locks. */
function tryLock(directory: Deno.FsFile): boolean | undefined {
  try {
    return directory.tryLockSync(true);
  } catch (error) {
    if (NO_LOCKS.has(codeOf(error))) return undefined;
    throw error;
  }
}

/** The codes by which a file system refuses a lock on any directory. */
const NO_LOCKS = new Set<string | undefined>(
  ["EBADF", "EINVAL", "ENOTSUP", "EOPNOTSUPP"],
);

/**
 * Whether scratch has had no new entry for an hour; used where directories have
 * no locks.
 */
function isOld(path: string): boolean {
  const { ctime } = Deno.lstatSync(path);
  return ctime !== null && Date.now() - ctime.getTime() > 60 * 60 * 1000;
}

/** Whether others, who are not excluded by a lock, can be the cause. */
function isRace(error: unknown): boolean {
  return isGone(error) || error instanceof Deno.errors.AlreadyExists ||
    error instanceof Deno.errors.Busy || codeOf(error) === "ENOTEMPTY" ||
    WINDOWS && error instanceof Deno.errors.PermissionDenied;
}

function isFull(error: unknown): boolean {
  return ["ENOSPC", "EDQUOT"].includes(codeOf(error) ?? "");
}

function codeOf(error: unknown): string | undefined {
  return (error as { code?: string }).code;
}

function exists(path: string): boolean {
  return quietly(() => Deno.lstatSync(path)) !== undefined;
}
