/** The functions that the abort of one signal calls. */
class Calls extends Set<() => void> implements EventListenerObject {
  handleEvent(): void {
    for (const call of this) call();
  }
}

const callsOf = new WeakMap<AbortSignal, Calls>();

/**
 * Calls a function when the signal is aborted, until it is disposed of. A signal
 * gets one listener for all, since the removal of one of many takes long.
 */
export function onAbort(signal: AbortSignal, call: () => void): Disposable {
  const calls = callsOf.get(signal) ?? new Calls();
  callsOf.set(signal, calls);
  if (calls.size === 0) signal.addEventListener("abort", calls);
  calls.add(call);
  return {
    [Symbol.dispose]() {
      calls.delete(call);
      if (calls.size === 0) signal.removeEventListener("abort", calls);
    },
  };
}
