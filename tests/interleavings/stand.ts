/** The worker of a place in the queue, played by a process of its own. */

import { CODE } from "../../_lock/place.ts";
import { type Port, State } from "./port.ts";

/**
 * The indexes of the shared numbers: OWNER for its start, OWNER + n for its step n,
 * taken or passed over, and ENDED for its termination.
 */
export const OWNER = 8;
const STEPS = 8;
const ENDED = OWNER + STEPS;
/** Said too, once it stands in the queue, or never will. */
export const STANDS = 2;
/** The label of its last step: it closes its files, and nothing is said any more. */
export const UNSAY = "close all, since it is terminated";

/** Runs the code of the library's worker for whoever starts it, again and again. */
export async function stand(_: unknown, at: string, port: Port): Promise<void> {
  for (;;) {
    port.await(OWNER);
    const hear = new Function(
      "postMessage",
      "setTimeout", // it is never idle
      "clearTimeout",
      `let onmessage; ${CODE} return onmessage;`,
    )(() => {}, () => {}, () => {});
    await hear({ data: [`${at}/x.lock`] });
    port.await(ENDED);
    port.ask(State.Ready, UNSAY);
    port.onKill();
    port.shared.fill(0, OWNER);
  }
}

/** The part of the owner. Each pause of the owner is as good as a message. */
export class StandWorker {
  constructor(readonly port: Port) {
    if (!port.hasStand || port.shared[OWNER]) throw new Error("no free thread");
    port.say([OWNER], port.process + 1);
  }

  postMessage() {}

  terminate(): void {
    this.port.say([ENDED]);
  }
}

/** The number that a worker and its owner share. Here, no worker stands again. */
export function atomicsOf(port: Port) {
  const load = () =>
    port.shared.slice(OWNER, ENDED).findLastIndex((isSaid) => isSaid > 0);
  const store = (_: unknown, _index: number, step: number) => {
    const passed = Array.from({ length: step }, (_, i) => OWNER + 1 + i);
    if (step > 0) port.say([...passed, STANDS]);
  };
  return {
    load,
    store,
    compareExchange(_: unknown, _i: number, from: number, to: number): number {
      const was = load();
      // The real one would fail if others act now, but they say higher numbers.
      if (was === from) store(_, _i, to);
      return was;
    },
    notify() {},
    wait(_: unknown, _i: number, step: number, ms: number): void {
      if (ms > 0 && load() === step) port.await(OWNER + step + 1);
    },
  };
}
