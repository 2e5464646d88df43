/**
 * An error of the same class and `code`. Its message begins with what was tried,
 * and its cause is the original. In it, `known` replaces `path`.
 */
export function explain(
  tried: string,
  error: unknown,
  path = "",
  known = "",
): Error {
  const { constructor, message, code } = error as Error & { code?: string };
  const explained = new (constructor as ErrorConstructor)(
    `${tried}: ${message.replaceAll(path, () => known)}`,
    { cause: error },
  );
  return code === undefined ? explained : Object.assign(explained, { code });
}

/** A value as messages show it: a string in quotes, with a NUL in it escaped. */
export function quote(value: unknown): string {
  return typeof value === "string" ? JSON.stringify(value) : String(value);
}

/** The result of `attempt`, or `undefined` if it throws. */
export function quietly<T>(attempt: () => T): T | undefined {
  try {
    return attempt();
  } catch {
    return undefined;
  }
}

/** Creates the parent only after a failure: Deno may not be allowed to see it. */
export function withParent<T>(attempt: () => T, createParent: () => void): T {
  try {
    return attempt();
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
    createParent();
    return attempt();
  }
}

/** Errors to which Deno gives no `code`. */
const UNNAMED: Record<string, string> = {
  "darwin 69": "EDQUOT",
  "darwin 78": "ENOSYS",
  "linux 38": "ENOSYS",
  "linux 122": "EDQUOT",
};

/** Whether nothing exists at the path any more. */
export function isGone(error: unknown): boolean {
  return error instanceof Deno.errors.NotFound ||
    error instanceof Deno.errors.NotADirectory;
}

/** Whether it is still in use, so that a later try may succeed. */
export function isInUse(error: unknown): boolean {
  return ["EBUSY", "ENOTEMPTY"].includes(codeOf(error) ?? "") ||
    Deno.build.os === "windows" &&
      error instanceof Deno.errors.PermissionDenied;
}

/** Whether others, who are not excluded by a lock, can be the cause. */
export function isRace(error: unknown): boolean {
  return isGone(error) || isInUse(error) ||
    error instanceof Deno.errors.AlreadyExists;
}

export function isFull(error: unknown): boolean {
  return ["ENOSPC", "EDQUOT"].includes(codeOf(error) ?? "");
}

/** Whether it cannot be moved, as in a lower layer of an overlay. */
export function isImmovable(error: unknown): boolean {
  return isFull(error) || // as a full btrfs says
    Deno.build.os === "windows" && isInUse(error) || // as with open files
    ["EXDEV", "ENOSYS", "ENOTSUP", "EOPNOTSUPP"].includes(codeOf(error) ?? "");
}

function codeOf(error: unknown): string | undefined {
  const { code, message } = error as Error & { code?: string };
  const [, number = ""] = /\(os error (\d+)\)/.exec(message) ?? [];
  return code ?? UNNAMED[`${Deno.build.os} ${number}`];
}
