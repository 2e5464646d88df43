import { isIn, look } from "../_path.ts";

/** Something that an exit deletes or frees. */
export interface Exiting {
  readonly path: string;
  atExit(): void;
  /** Closes its file, which frees it. */
  release?(): void;
}

// A DOM emulation may replace these later.
const { addEventListener, removeEventListener } = globalThis;

/** The key is a path, which has one owner in this thread, or the thing itself. */
const exits = new Map<unknown, Exiting>();

/** In reverse order of registration: a lock file outlives its scratch. */
function exit(): void {
  for (const it of [...exits.values()].reverse()) it.atExit();
}

/** Lets an exit end it, and not its predecessor at that key. */
export function register(it: Exiting, key: unknown = it.path): void {
  if (exits.size === 0) addEventListener.call(globalThis, "unload", exit);
  exits.delete(key);
  exits.set(key, it);
}

/** The result tells whether it was registered. */
export function unregister(it: Exiting, key: unknown = it.path): boolean {
  const was = exits.get(key) === it && exits.delete(key);
  if (was && exits.size === 0) {
    removeEventListener.call(globalThis, "unload", exit);
  }
  return was;
}

/**
 * Closes the open files of a directory, which may have moved, that are deleted.
 * On FUSE, such a file keeps its directory from being deleted.
 */
export function releaseIn(from: string, to: string): void {
  for (const it of exits.values()) {
    if (!it.release || !isIn(from, it.path)) continue;
    const moved = to + it.path.slice(from.length);
    if (!look(it.path) && !look(moved)) it.release();
  }
}

export function registeredAt(path: string): Exiting | undefined {
  return exits.get(path);
}
