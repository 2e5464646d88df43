/** Ways to do one thing by name, each of which gives one sample when called. */
export type Contenders = Record<string, () => number | Promise<number>>;

/**
 * Registers a bench, each iteration of which calls the contenders by turns, so
 * that a noisy machine is noisy for all of them. At the end it prints each
 * one's median and its ratio to the first one's.
 */
export function compare(
  name: string,
  unit: string,
  rounds: number,
  contenders: Contenders,
): void {
  const samples = Object.entries(contenders)
    .map(([who, sample]) => ({ who, sample, values: [] as number[] }));
  Deno.bench({
    name,
    n: rounds,
    warmup: 1,
    async fn() {
      for (const { sample, values } of samples) values.push(await sample());
    },
  });
  addEventListener("unload", () => {
    if (samples[0].values.length === 0) return; // filtered out
    console.log(`\n${name}: medians of ${samples[0].values.length}`);
    const first = median(samples[0].values);
    for (const { who, values } of samples) {
      const value = median(values);
      const digits = value < 100 ? 2 : 0;
      console.log(
        `  ${who.padEnd(46)}`,
        `${value.toFixed(digits).padStart(8)} ${unit.padEnd(3)}`,
        `${(value / first).toFixed(2).padStart(8)} x`,
      );
    }
  });
}

/** The microseconds that one of `times` calls of `fn` takes. */
export async function perCall(
  times: number,
  fn: () => unknown,
): Promise<number> {
  const start = performance.now();
  for (let i = 0; i < times; i++) await fn();
  return (performance.now() - start) * 1000 / times;
}

function median(values: number[]): number {
  return values.toSorted((a, b) => a - b)[values.length >> 1];
}
