import { quietly } from "../_error.ts";

/** The functions that the abort of one signal calls. */
class Calls extends Set<() => void> implements EventListenerObject {
  handleEvent(): void {
    for (const call of this) call();
  }
}

const callsOf = new WeakMap<AbortSignal, Calls>();

/**
 * Calls a function when a signal is aborted, until it is disposed of. One
 * listener serves all: to remove one, Deno searches all.
 */
export function onAbort(
  signals: readonly (AbortSignal | undefined)[],
  abandon: (reason: unknown) => void,
): Disposable {
  const stack = new DisposableStack();
  for (const signal of signals) {
    if (!signal) continue;
    const calls = callsOf.get(signal) ?? new Calls();
    callsOf.set(signal, calls);
    if (calls.size === 0) signal.addEventListener("abort", calls);
    const call = () => abandon(signal.reason);
    calls.add(call);
    stack.defer(() => {
      calls.delete(call);
      if (calls.size > 0) return;
      // A caller's own class may throw, but the lock is granted by now.
      quietly(() => signal.removeEventListener("abort", calls));
    });
  }
  return stack;
}

/** Passes on what was acquired, unless it was abandoned in the meantime. */
export function unlessAborted<T extends Disposable>(
  acquired: T,
  signals: readonly (AbortSignal | undefined)[],
): T {
  const aborted = signals.find((signal) => signal?.aborted);
  if (!aborted) return acquired;
  acquired[Symbol.dispose]();
  throw aborted.reason;
}
