import { quietly } from "../_error.ts";
import { clock } from "../_lock/clock.ts";
import { tryOpen } from "../_lock/file.ts";
import { joinName, WINDOWS } from "../_path.ts";
import { LOCK } from "./claim.ts";
import { registeredAt } from "./exits.ts";
import { SCRATCH_LOCK } from "./names.ts";
import { look, RECURSIVE } from "./tree.ts";

/** When directories that took long to list may be listed again. */
const rests = new Map<string, number>();

/**
 * Deletes what crashes have left in a directory, and nothing that has an owner.
 * A slow listing rests for 100 times its length, unless the sweep is urgent.
 */
export async function sweep(
  directory: string,
  isUrgent: boolean,
): Promise<void> {
  const start = clock.now();
  if (!isUrgent && start < (rests.get(directory) ?? 0)) return;
  // The asynchronous call takes four times as long, however many there are.
  const entries = quietly(() => [...Deno.readDirSync(directory)]) ?? [];
  const lockPaths = entries.filter(({ name }) => SCRATCH_LOCK.test(name))
    .map(({ name }) => joinName(directory, name))
    .filter((path) => !registeredAt(path));
  const end = clock.now();
  if (end - start > 1) rests.set(directory, end + 100 * (end - start));
  else rests.delete(directory);
  for (const path of lockPaths) {
    // It may be somebody else's to delete. A later sweep tries again.
    await sweepScratch(path).catch(() => {});
  }
}

/** Deletes scratch if its owner has died, which has freed the lock. */
async function sweepScratch(lockPath: string): Promise<void> {
  using file = tryOpen(lockPath, false);
  if (!file) return;
  const path = lockPath.slice(0, -LOCK.length);
  const found = look(path);
  // Its owner may live: another's close moved it here, then died.
  using directory = found?.isDirectory && !WINDOWS
    ? Deno.openSync(path)
    : undefined;
  if (quietly(() => directory?.tryLockSync(true)) === false) return;
  if (found) await Deno.remove(path, RECURSIVE);
  Deno.removeSync(lockPath);
}
