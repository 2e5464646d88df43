/** What the parts of a soak share: chance, and a story of what happened. */

/** Mulberry32. Other processes get the source of this function. */
export function makeDice(seed: number) {
  const next = () => {
    seed = seed + 0x6D2B79F5 | 0;
    let t = Math.imul(seed ^ seed >>> 15, seed | 1);
    t ^= t + Math.imul(t ^ t >>> 7, t | 61);
    return ((t ^ t >>> 14) >>> 0) / 2 ** 32;
  };
  const below = (limit: number) => Math.floor(next() * limit);
  const chance = (probability: number) => next() < probability;
  const pick = <T>(all: T[]): T => all[below(all.length)];
  const fork = () => below(2 ** 32);
  return { below, chance, pick, fork };
}
export type Dice = ReturnType<typeof makeDice>;

/** The time of the end, and a promise that a violation or Ctrl-C rejects. */
export const run = { end: 0, failed: Promise.withResolvers<never>() };
export const isOver = () => performance.now() >= run.end;

/** What one part did. */
export class Journal {
  readonly counts: Record<string, number> = {};
  readonly #events: string[] = [];

  constructor(readonly part: string) {}

  note(who: string, what: string, detail = ""): void {
    this.counts[what] = (this.counts[what] ?? 0) + 1;
    const ms = performance.now().toFixed(1);
    this.#events.push(`  ${ms} ${who}: ${what} ${detail}`);
    if (this.#events.length > 20) this.#events.shift();
  }

  /** Ends the run with the story, if it is the first. */
  violated(who: string, expected: string, seen: unknown): void {
    const what = `in ${this.part}, of ${who}\nexpected: ${expected}`;
    const story = [what, `seen: ${Deno.inspect(seen)}`, ...this.#events];
    run.failed.reject(story.join("\n"));
  }

  /** Waits, but not for ever. */
  async soon(who: string, expected: string, promise: Promise<unknown>) {
    const late = () => this.violated(who, expected, "nothing of that for 10 s");
    const timer = setTimeout(late, 10_000);
    await promise.finally(() => clearTimeout(timer));
  }
}
