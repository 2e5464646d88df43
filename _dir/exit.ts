/** What an exit deletes. */
interface Exiting {
  readonly path: string;
  deleteAtExit(): void;
}

/** By their paths, of which each has one owner. */
const exits = new Map<string, Exiting>();

function deleteAll(): void {
  for (const it of exits.values()) it.deleteAtExit();
}

/** Has an exit delete it, in the place of what it deletes at that path so far. */
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
