/** The time for which this thread has had a path, without a gap for others. */
export interface Span {
  readonly since: number;
  /** The last release, or `Infinity` while the path is held. */
  until: number;
}

/** The spans of the paths that are held, or were until just now. */
const spans = new Map<string, Span>();

/** Begins to hold the path, and so goes on with its span if it has one. */
export function beginSpan(path: string): Span {
  const now = performance.now();
  for (const [path, { until }] of spans) {
    if (now - until >= 1) spans.delete(path);
  }
  const { since } = spans.get(path) ?? { since: now };
  const span = { since, until: Infinity };
  spans.set(path, span);
  return span;
}

export function isHeld(path: string): boolean {
  return spans.get(path)?.until === Infinity;
}

/** Whether others need a gap, since they may try only from time to time. */
export function mustGiveWay(path: string): boolean {
  const span = spans.get(path);
  return span !== undefined && span.until - span.since >= 100 &&
    performance.now() - span.until < 1;
}
