import { quietly } from "../_error.ts";
import { tryFile } from "../_lock/file.ts";
import { joinName } from "../_path.ts";
import { register, unregister } from "./exits.ts";
import { newScratchName } from "./names.ts";
import { exists } from "./tree.ts";

const LOCK = ".lock";

/** The path that is claimed by the lock file at another one. */
export function claimedBy(lockPath: string): string {
  return lockPath.slice(0, -LOCK.length);
}

/**
 * The right to a new path. A locked file beside it shows that the owner lives. What
 * has a free lock file may be deleted by anybody, and nothing else.
 */
export class Claim {
  private constructor(
    /** The path of the lock file. */
    readonly path: string,
    /** Missing on a file system without locks, where nothing is swept. */
    readonly file: Deno.FsFile | undefined,
  ) {
    register(this);
  }

  /** Claims a new path in a directory. */
  static create(directory: string): Claim {
    const path = joinName(directory, newScratchName() + LOCK);
    const options = { read: true, write: true, createNew: true };
    using undo = new DisposableStack();
    const file = undo.use(Deno.openSync(path, options));
    let isOwn: boolean;
    try {
      isOwn = tryFile(path, file) && exists(path);
    } catch {
      Deno.removeSync(path);
      return new Claim(path, undefined);
    }
    if (!isOwn) throw new Deno.errors.AlreadyExists("A sweep came first");
    undo.move();
    return new Claim(path, file);
  }

  /** What it claims. */
  get target(): string {
    return claimedBy(this.path);
  }

  /** Ends it. A later sweep deletes what is left. */
  release(isLeft?: boolean): undefined {
    if (!unregister(this) || !this.file) return;
    isLeft ??= exists(this.target);
    if (!isLeft) quietly(() => Deno.removeSync(this.path));
    this.file[Symbol.dispose]();
  }

  atExit(): void {
    this.release();
  }
}
