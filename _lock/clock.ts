/** Keeps a global, but reads it at its use: Deno takes long to load some. */
export function keep<K extends "setTimeout" | "clearTimeout" | "Worker">(
  name: K,
): () => typeof globalThis[K] {
  const property = Object.getOwnPropertyDescriptor(globalThis, name)!;
  return () => property.value ?? property.get!.call(globalThis);
}

const realSetTimeout = keep("setTimeout");
const realClearTimeout = keep("clearTimeout");

/**
 * The real clock. Tests of other programs may replace the global timers, and a
 * wait that read those would never end. Tests of this library replace these.
 */
export const clock = {
  /** The milliseconds since this thread began. */
  now: performance.now.bind(performance),
  setTimeout: (end: () => void, ms: number) => realSetTimeout()(end, ms),
  clearTimeout: (timer?: ReturnType<typeof setTimeout>) =>
    realClearTimeout()(timer),
};

/** Waits for some milliseconds. */
export function pause(ms: number): Promise<void> {
  return new Promise((resolve) => clock.setTimeout(resolve, ms));
}
