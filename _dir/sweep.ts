import { isGone, quietly } from "../_error.ts";
import { clock } from "../_lock/clock.ts";
import { tryOpen } from "../_lock/file.ts";
import { joinName, WINDOWS } from "../_path.ts";
import { claimedBy } from "./claim.ts";
import { registeredAt } from "./exits.ts";
import { isScratchLock } from "./names.ts";
import { look, RECURSIVE } from "./tree.ts";

/** When directories that took long to list may be listed again. */
const rests = new Map<string, number>();

/**
 * Deletes what crashes have left in a directory, and nothing that has an owner.
 * Looking for it takes at most a hundredth of the time, unless that is urgent.
 */
export async function sweep(
  directory: string,
  isUrgent: boolean,
): Promise<void> {
  const start = clock.now();
  if (!isUrgent && start < (rests.get(directory) ?? 0)) return;
  // The asynchronous call takes four times as long, however many there are.
  const entries = quietly(() => [...Deno.readDirSync(directory)]) ?? [];
  const lockPaths = entries.filter(({ name }) => isScratchLock(name))
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
  const path = claimedBy(lockPath);
  if (look(path)?.isDirectory && isLocked(path)) return;
  try {
    await Deno.remove(path, RECURSIVE);
  } catch (error) {
    if (!isGone(error)) throw error;
  }
  Deno.removeSync(lockPath);
}

/** A mover may have died that took it from its owner, who lives. */
function isLocked(path: string): boolean {
  if (WINDOWS) return false;
  using directory = Deno.openSync(path);
  return quietly(() => directory.tryLockSync(true)) === false;
}
