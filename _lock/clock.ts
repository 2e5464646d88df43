const { setTimeout, clearTimeout } = globalThis;
const now = performance.now.bind(performance);

type Timer = ReturnType<typeof setTimeout>;

/**
 * The real clock. Tests of other programs may replace the global timers, and a
 * wait that read those would never end. Tests of this library replace these.
 */
export const clock = {
  /** The milliseconds since this thread began. */
  now,
  setTimeout: (end: () => void, ms: number): Timer => setTimeout(end, ms),
  clearTimeout: (timer: Timer): void => clearTimeout(timer),
};

/** Waits for some milliseconds. */
export function pause(ms: number): Promise<void> {
  return new Promise((resolve) => clock.setTimeout(resolve, ms));
}
