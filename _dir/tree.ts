import { explain, isGone, isImmovable, isRace, quietly } from "../_error.ts";
import { clock, pause } from "../_lock/clock.ts";
import { isSame, look } from "../_path.ts";
import { Claim } from "./claim.ts";
import { type Exiting, register, unregister } from "./exits.ts";

export const RECURSIVE = { recursive: true };

/** Something to delete, whatever it is. */
export class Tree implements Exiting {
  /**
   * @param path Where it is.
   * @param home Where it returns to if it cannot be deleted.
   * @param found What it is. Missing at a claimed path, where anything is deleted.
   */
  constructor(
    readonly path: string,
    readonly home: string,
    readonly found?: Deno.FileInfo,
  ) {}

  /** What has the path. */
  static at(path: string): Tree | undefined {
    const found = look(path);
    return found && new Tree(path, path, found);
  }

  /** Moves it to a claimed path if it exists, or leaves it if it cannot be moved. */
  moveTo(claimed: string): Tree | undefined {
    try {
      if (claimed !== this.path) Deno.renameSync(this.path, claimed);
      return new Tree(claimed, this.path);
    } catch (error) {
      if (isGone(error)) return undefined;
      if (isImmovable(error)) return this;
      throw error;
    }
  }

  /** Deletes it, even if an exit comes first. Repeats that for 0.3 s if others interfere. */
  async delete(): Promise<void> {
    register(this, this);
    let end: number | undefined;
    try {
      do {
        try {
          return await Deno.remove(this.path, RECURSIVE);
        } catch (error) {
          const now = clock.now();
          end ??= now + 300;
          if (!isRace(error) || now > end) throw error;
        }
        if (!Claim.releaseDeleted()) await pause(20);
      } while (this.#isThere());
    } catch (error) {
      const rest = this.putBack();
      throw explain(`Cannot remove ${rest}`, error, this.path, rest);
    } finally {
      unregister(this, this);
    }
  }

  atExit(): void {
    const remove = () => {
      if (this.#isThere()) Deno.removeSync(this.path, RECURSIVE);
    };
    // Each try may stop at one more open lock file.
    do quietly(remove); while (Claim.releaseDeleted());
    try {
      remove();
    } catch {
      this.putBack();
    }
  }

  /** Moves what is left of it back home, if that is free, and tells where it is. */
  putBack(): string {
    return quietly(() => {
      if (look(this.home)) return undefined;
      Deno.renameSync(this.path, this.home);
      return this.home;
    }) ?? this.path;
  }

  #isThere(): boolean {
    const there = look(this.path);
    return !!there && (!this.found || isSame(this.found, there));
  }
}
