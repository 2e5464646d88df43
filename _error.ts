/**
 * The same class of error with the same `code`: its message begins with what
 * was tried, its cause is the original.
 */
export function explained(tried: string, error: unknown): Error {
  const { constructor, message, code } = error as Error & { code?: string };
  const explained = new (constructor as ErrorConstructor)(
    `${tried}: ${message}`,
    { cause: error },
  );
  return code === undefined ? explained : Object.assign(explained, { code });
}

/** Whether nothing exists at the path any more. */
export function isGone(error: unknown): boolean {
  return error instanceof Deno.errors.NotFound ||
    error instanceof Deno.errors.NotADirectory;
}

/** What `attempt` returns, or `undefined` if it throws. */
export function quietly<T>(attempt: () => T): T | undefined {
  try {
    return attempt();
  } catch {
    return undefined;
  }
}
