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
  return { below, chance, pick };
}
export type Dice = ReturnType<typeof makeDice>;

/** Rejects with the story of the first violation. */
export const failed = Promise.withResolvers<never>();

/** What one part did. */
export class Journal {
  readonly counts: Record<string, number> = {};
  readonly #events: string[] = [];

  constructor(readonly part: string) {}

  count(what: string): void {
    this.counts[what] = (this.counts[what] ?? 0) + 1;
  }

  note(event: string): void {
    this.#events.push(`  ${performance.now().toFixed(1)} ${event}`);
    if (this.#events.length > 20) this.#events.shift();
  }

  /** Ends the run with the story, if it is the first. */
  violated(expected: string, seen: unknown): void {
    const value = typeof seen === "string" ? seen : Deno.inspect(seen);
    const story = [`expected: ${expected}`, `seen: ${value}`, ...this.#events];
    failed.reject(`in ${this.part}\n${story.join("\n")}`);
  }

  /** Waits, but not for ever. */
  async soon<T>(expected: string, promise: Promise<T>): Promise<T> {
    const late = () => this.violated(expected, "nothing of that for 10 s");
    const timer = setTimeout(late, 10_000);
    return await promise.finally(() => clearTimeout(timer));
  }
}
