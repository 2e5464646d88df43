import { quietly } from "../_error.ts";
import { tryFile } from "../_lock/file.ts";
import { joinName, look } from "../_path.ts";
import { register, registered, unregister } from "./exits.ts";

export const LOCK = ".lock";

/**
 * The right to a new path. A locked file beside it shows that the owner lives.
 * Anybody may delete a path whose lock file is free, and no other.
 */
export class Claim {
  private constructor(
    /** The claimed path. */
    readonly target: string,
    /** The path of the lock file. */
    readonly path: string,
    /** Missing on a file system without locks, where nothing is swept. */
    readonly file: Deno.FsFile | undefined,
  ) {
    register(this);
  }

  /** Claims a new path in a directory. */
  static create(directory: string): Claim {
    const target = joinName(directory, `.scratch-${crypto.randomUUID()}`);
    const path = target + LOCK;
    const options = { read: true, write: true, createNew: true };
    using undo = new DisposableStack();
    const file = undo.use(Deno.openSync(path, options));
    let isLocked: boolean;
    try {
      isLocked = tryFile(path, file);
    } catch {
      Deno.removeSync(path);
      return new Claim(target, path, undefined);
    }
    const isOwn = isLocked && look(path) !== undefined;
    if (!isOwn) throw new Deno.errors.AlreadyExists("A sweep came first");
    undo.move();
    return new Claim(target, path, file);
  }

  /**
   * Ends the claims whose file is deleted, and tells whether any was. On FUSE, the
   * open file keeps its directory from being deleted.
   */
  static releaseDeleted(): boolean {
    const deleted = registered().filter((it) =>
      it instanceof Claim && quietly(() => it.file?.statSync())?.nlink === 0
    );
    for (const it of deleted) it.atExit();
    return deleted.length > 0;
  }

  /** Ends the claim. Its lock file stays if the target does, unless `isDone`. */
  release(isDone?: boolean): undefined {
    if (!unregister(this) || !this.file) return;
    isDone ??= quietly(() => !look(this.target));
    if (isDone) quietly(() => Deno.removeSync(this.path));
    this.file[Symbol.dispose]();
  }

  atExit(): void {
    this.release();
  }
}
