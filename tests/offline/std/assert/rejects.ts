import { check, type ErrorClass } from "./throws.ts";

export async function assertRejects<E extends Error = Error>(
  fn: () => PromiseLike<unknown>,
  Class?: ErrorClass<E>,
  includes?: string,
): Promise<E> {
  const promise = fn();
  let error: unknown;
  try {
    await promise;
  } catch (thrown) {
    error = thrown;
  }
  return check(error, Class, includes);
}
