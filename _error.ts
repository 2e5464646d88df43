/**
 * An error of the same class and `code`. Its message begins with what was tried,
 * and its cause is the original.
 */
export function explain(tried: string, error: unknown): Error {
  const { constructor, message, code } = error as Error & { code?: string };
  const explained = new (constructor as ErrorConstructor)(
    `${tried}: ${message}`,
    { cause: error },
  );
  return code === undefined ? explained : Object.assign(explained, { code });
}

/** The result of `attempt`, or `undefined` if it throws. */
export function quietly<T>(attempt: () => T): T | undefined {
  try {
    return attempt();
  } catch {
    return undefined;
  }
}
