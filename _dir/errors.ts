import { WINDOWS } from "../_path.ts";

/** Whether nothing exists at the path any more. */
export function isGone(error: unknown): boolean {
  return error instanceof Deno.errors.NotFound ||
    error instanceof Deno.errors.NotADirectory;
}

/** Whether others who still use it can be the cause. */
export function isInUse(error: unknown): boolean {
  return error instanceof Deno.errors.Busy || codeOf(error) === "ENOTEMPTY" ||
    WINDOWS && error instanceof Deno.errors.PermissionDenied;
}

/** Whether others, who are not excluded by a lock, can be the cause. */
export function isRace(error: unknown): boolean {
  return isGone(error) || isInUse(error) ||
    error instanceof Deno.errors.AlreadyExists;
}

export function isFull(error: unknown): boolean {
  return ["ENOSPC", "EDQUOT"].includes(codeOf(error) ?? "");
}

export function codeOf(error: unknown): string | undefined {
  return (error as { code?: string }).code;
}
