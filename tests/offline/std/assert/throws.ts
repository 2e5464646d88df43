import { AssertionError } from "node:assert";

// deno-lint-ignore no-explicit-any -- any class of error, whatever it is made of
export type ErrorClass<E extends Error> = abstract new (...args: any[]) => E;

export function check<E extends Error>(
  error: unknown,
  Class: ErrorClass<E> | undefined,
  includes = "",
): E {
  if (
    error instanceof (Class ?? Error) && error.message.includes(includes)
  ) return error as E;
  throw new AssertionError({
    message: `expected ${Class?.name ?? "an error"} with "${includes}"`,
    actual: error,
  });
}

export function assertThrows<E extends Error = Error>(
  fn: () => unknown,
  Class?: ErrorClass<E>,
  includes?: string,
): E {
  let error: unknown;
  try {
    fn();
  } catch (thrown) {
    error = thrown;
  }
  return check(error, Class, includes);
}
