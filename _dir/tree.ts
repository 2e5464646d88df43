import {
  explain,
  isGone,
  isImmovable,
  isInUse,
  quietly,
  renamePath,
} from "../_error.ts";
import { clock, pause } from "../_lock/clock.ts";
import { isSame } from "../_path.ts";
import { type Exiting, register, unregister } from "./exits.ts";

export const RECURSIVE = { recursive: true };

/** What has the path, or `undefined` if nothing does. */
export function look(path: string): Deno.FileInfo | undefined {
  try {
    return Deno.lstatSync(path);
  } catch (error) {
    if (isGone(error)) return undefined;
    throw error;
  }
}

export function exists(path: string): boolean {
  return quietly(() => Deno.lstatSync(path)) !== undefined;
}

/** Something to delete, whatever it is. */
export class Tree implements Exiting {
  /**
   * @param path Where it is.
   * @param home Where it returns to if it cannot be deleted.
   * @param found What it is. Nothing else at that path is deleted.
   */
  constructor(
    readonly path: string,
    readonly home: string,
    readonly found: Deno.FileInfo,
  ) {}

  /** What has the path. */
  static at(path: string): Tree | undefined {
    const found = look(path);
    return found && new Tree(path, path, found);
  }

  /** Moves it aside, if it is still there. The file system may move none. */
  moveTo(aside: string): Tree | undefined {
    if (aside === this.path) return this;
    try {
      Deno.renameSync(this.path, aside);
      return new Tree(aside, this.path, this.found);
    } catch (error) {
      if (isGone(error)) return undefined;
      if (isImmovable(error)) return this;
      throw error;
    }
  }

  /** Deletes it, even if an exit comes first, and tries for 0.3 s if it is in use. */
  async delete(): Promise<void> {
    register(this);
    const end = clock.now() + 300;
    try {
      while (!await this.#tryDelete(clock.now() < end)) {
        await pause(20);
        const there = look(this.path);
        if (!there || !isSame(this.found, there)) return;
      }
    } finally {
      unregister(this);
    }
  }

  async #tryDelete(mayRetry: boolean): Promise<boolean> {
    try {
      await Deno.remove(this.path, RECURSIVE);
    } catch (error) {
      if (isGone(error)) return true;
      if (mayRetry && isInUse(error)) return false;
      const rest = this.putBack();
      renamePath(error, this.path, rest);
      throw explain(`Cannot remove ${rest}`, error);
    }
    return true;
  }

  atExit(): void {
    try {
      Deno.removeSync(this.path, RECURSIVE);
    } catch {
      this.putBack();
    }
  }

  /** Moves what is left of it back home, if that is free, and tells where it is. */
  putBack(): string {
    const isFree = !exists(this.home);
    quietly(() => isFree && Deno.renameSync(this.path, this.home));
    return isFree && !exists(this.path) ? this.home : this.path;
  }
}
