/** The worker of a place in the queue, played by a process of its own. */

import { CODE } from "../../_lock/place.ts";
import { quietly } from "../../_error.ts";
import { type Port, State } from "./port.ts";

/** What is said: who starts it, and one number for each step and each news. */
export const OWNER = 8;
const STEPS = ["stand", "share", "leave"];
const ASKED = 9;
const NEWS = [undefined, "stands", true, false];
const TOLD = 12;
const ENDED = 16;
/** How a step is said when the worker is terminated instead. */
const TERMINATED = 2;
/** What is said, too, when it stands in the queue. */
export const STANDS = 2;
/** The label of its last step: it closes all, and nothing is said any more. */
export const UNSAY = "close all, since it is terminated";

/** Runs the code of the library's worker for whoever starts it, again and again. */
export async function stand(_: unknown, at: string, port: Port): Promise<void> {
  for (;;) {
    port.await(OWNER);
    let told = TOLD;
    const tell = (news: unknown) => {
      const also = news === "stands" ? [STANDS] : [];
      port.say([told++, ...also], NEWS.indexOf(news as boolean));
    };
    const hear = new Function(
      "postMessage",
      "setTimeout", // no owner is late
      "clearTimeout",
      `let onmessage; ${CODE} return onmessage;`,
    )(tell, () => {}, () => {});
    for (const [i, step] of STEPS.entries()) {
      if (port.await(ASKED + i) === TERMINATED) break;
      await hear({ data: [step, `${at}/x.lock`] });
    }
    port.await(ENDED);
    port.ask(State.Ready, UNSAY);
    port.onKill();
    port.shared.fill(0, OWNER);
  }
}

/** What the owner has of it. */
export class StandWorker {
  onmessage = (_: { data: unknown }) => {};
  #asked = ASKED;
  #told = TOLD;
  #isTerminated = false;

  constructor(readonly port: Port) {
    if (!port.hasStand || port.shared[OWNER]) throw new Error("no free thread");
    port.say([OWNER], port.process + 1);
  }

  postMessage([step]: string[]): void {
    this.port.say([this.#asked++]);
    if (step === STEPS[0]) return; // it polls meanwhile
    queueMicrotask(() => {
      quietly(() => this.port.await(this.#told));
      if (!this.hear()) this.onmessage({ data: false }); // it is killed
    });
  }

  /** Takes the next news, if any. */
  hear(): boolean {
    const news = this.port.shared[this.#told];
    if (!news || this.#isTerminated) return false;
    this.#told++;
    this.onmessage({ data: NEWS[news] });
    this.port.onNews(this.#told - TOLD);
    return true;
  }

  terminate(): void {
    this.#isTerminated = true;
    const left = STEPS.map((_, i) => ASKED + i);
    this.port.say([...left, ENDED], TERMINATED);
  }
}
