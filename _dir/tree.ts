import {
  codeOf,
  explain,
  isFull,
  isGone,
  isInUse,
  quietly,
  renamePath,
} from "../_error.ts";
import { clock, pause } from "../_lock/clock.ts";
import { joinName, parentOf } from "../_path.ts";
import { newTrashName } from "./names.ts";

const RECURSIVE = { recursive: true };

/** What an exit deletes. */
interface Exiting {
  readonly path: string;
  deleteAtExit(): unknown;
}

/** By their paths, of which each has one owner. */
const exits = new Map<string, Exiting>();

/** In reverse order of registration: a lock file outlives its scratch. */
function deleteAll(): void {
  for (const it of [...exits.values()].reverse()) it.deleteAtExit();
}

/** An exit deletes it, instead of what was registered at that path. */
export function register(it: Exiting): void {
  exits.set(it.path, it);
  addEventListener("unload", deleteAll);
}

export function unregister(it: Exiting): void {
  if (registeredAt(it.path) === it) exits.delete(it.path);
  if (exits.size === 0) removeEventListener("unload", deleteAll);
}

export function registeredAt(path: string): Exiting | undefined {
  return exits.get(path);
}

/** Something to delete, whatever it is. */
export class Tree {
  /**
   * @param path Where it is.
   * @param home Where it returns to if it cannot be deleted.
   */
  constructor(readonly path: string, readonly home: string = path) {}

  /** Moves what exists at the path aside in one step, if anything does. */
  static moveAside(
    path: string,
    aside = newTrashBeside(path),
  ): Tree | undefined {
    try {
      Deno.renameSync(path, aside);
      return new Tree(aside, path);
    } catch (error) {
      if (error instanceof Deno.errors.NotFound) return undefined;
      // An overlay cannot move a directory of a lower layer. A full btrfs
      // cannot move any.
      if (codeOf(error) === "EXDEV" || isFull(error)) return new Tree(path);
      throw error;
    }
  }

  /** Deletes it, and says what was tried if it cannot. */
  async remove(): Promise<void> {
    try {
      await this.delete();
    } catch (error) {
      throw explain(`Cannot remove ${this.home}`, error);
    }
  }

  /** Deletes it, even if an exit comes first. */
  async delete(): Promise<void> {
    register(this);
    try {
      await this.sweep();
    } catch (error) {
      this.putBack();
      throw error;
    } finally {
      unregister(this);
    }
  }

  /** Deletes it unless an exit comes first, and tries for 0.3 s if it is in use. */
  async sweep(): Promise<void> {
    const end = clock.now() + 300;
    while (!await this.#tryDelete(clock.now() < end)) await pause(20);
  }

  async #tryDelete(mayRetry: boolean): Promise<boolean> {
    try {
      await Deno.remove(this.path, RECURSIVE);
      return true;
    } catch (error) {
      // If only a part of it is gone, another one is deleting it too.
      if (isGone(error) && !exists(this.path)) return true;
      if (mayRetry && (isGone(error) || isInUse(error))) return false;
      renamePath(error, this.path, this.home);
      throw error;
    }
  }

  /** Deletes it at once, without throwing. The result tells whether it is gone. */
  deleteAtExit(): boolean {
    try {
      Deno.removeSync(this.path, RECURSIVE);
      return true;
    } catch {
      this.putBack();
      return false;
    }
  }

  /** Moves what is left of it back home, if that is free. */
  putBack(): void {
    if (!exists(this.home)) {
      quietly(() => Deno.renameSync(this.path, this.home));
    }
  }
}

function exists(path: string): boolean {
  return quietly(() => Deno.lstatSync(path)) !== undefined;
}

/** A path beside another one, for what nobody needs any more. */
export function newTrashBeside(path: string): string {
  return joinName(parentOf(path), newTrashName());
}
