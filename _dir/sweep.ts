import { quietly } from "../_error.ts";
import { tryOpen } from "../_lock/file.ts";
import { joinName } from "../_path.ts";
import { isTrashName, scratchNameOf } from "./names.ts";
import { registeredAt, Tree } from "./tree.ts";

/** Deletes what crashes have left in a directory, and nothing that has an owner. */
export async function sweep(directory: string): Promise<void> {
  // The asynchronous call takes four times as long, however many there are.
  const entries = quietly(() => [...Deno.readDirSync(directory)]) ?? [];
  for (const { name } of entries) {
    const path = joinName(directory, name);
    const scratchName = scratchNameOf(name);
    try {
      if (scratchName !== undefined) {
        await sweepScratch(joinName(directory, scratchName), path);
      } else if (isTrashName(name) && !registeredAt(path)) {
        await sweepTrash(path);
      }
    } catch {
      // It may be somebody else's to delete. A later sweep tries again.
    }
  }
}

/** Deletes scratch if its owner has died, which frees the lock. */
async function sweepScratch(path: string, lockPath: string): Promise<void> {
  using file = tryOpen(lockPath, false);
  if (file) await new Tree(path, path, lockPath).delete();
}

async function sweepTrash(path: string): Promise<void> {
  try {
    // An empty directory may get its name at this moment. Then it stays.
    Deno.removeSync(path);
  } catch {
    await new Tree(path).delete();
  }
}
