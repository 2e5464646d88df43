/**
 * How many waits may stand in Deno's own pool of threads, which all file
 * operations share. Before Deno 2.9.6 it has 32, and on Windows four for each
 * core: https://github.com/denoland/deno/issues/22504
 */
const MOST = 2;

/** They wake those who seek a thread. The first `MOST` have one. */
const seekers = new Set<() => void>();
const served = () => seekers.values().take(MOST);

/** Takes a thread of the pool, or else wakes the seeker once it can have one. */
export function takeThread(wake: () => void): boolean {
  seekers.add(wake);
  return served().some((it) => it === wake);
}

/** Leaves the thread to the next seeker, or gives up seeking one. */
export function leaveThread(wake: () => void): void {
  if (seekers.delete(wake)) served().drop(MOST - 1).forEach((next) => next());
}
