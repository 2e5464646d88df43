/** Something that an exit deletes or frees. */
export interface Exiting {
  readonly path: string;
  atExit(): void;
}

// A DOM emulation may replace these later.
const { addEventListener, removeEventListener } = globalThis;

/** The key is a path, which has one owner in this thread, or the thing itself. */
const exits = new Map<unknown, Exiting>();

/** In reverse order of registration: a lock file outlives its scratch. */
function exit(): void {
  for (const it of registered().reverse()) it.atExit();
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

export function registered(): Exiting[] {
  return [...exits.values()];
}

export function registeredAt(path: string): Exiting | undefined {
  return exits.get(path);
}
