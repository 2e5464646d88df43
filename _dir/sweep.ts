import { codeOf, quietly } from "../_error.ts";
import { tryOpen } from "../_lock/file.ts";
import { joinName, WINDOWS } from "../_path.ts";
import { isTrashName, scratchNameOf } from "./names.ts";
import { registeredAt, Tree } from "./tree.ts";

/** Deletes what crashes have left in a directory, and nothing that has an owner. */
export async function sweep(directory: string): Promise<void> {
  // The asynchronous call takes four times as long, however many there are.
  const entries = quietly(() => [...Deno.readDirSync(directory)]) ?? [];
  for (const { name, isDirectory } of entries) {
    const at = (name: string) => joinName(directory, name);
    const scratchName = scratchNameOf(name);
    try {
      if (isTrashName(name)) await sweepTrash(at(name), isDirectory);
      if (scratchName) await sweepScratch(at(scratchName), at(name));
    } catch {
      // It may be somebody else's to delete. A later sweep tries again.
    }
  }
}

async function sweepTrash(path: string, isDirectory: boolean): Promise<void> {
  if (registeredAt(path)) return;
  // A close may have moved away the scratch of the next owner, who has locked it,
  // and is about to put it back.
  using directory = isDirectory && !WINDOWS ? Deno.openSync(path) : undefined;
  if (quietly(() => directory?.tryLockSync(true)) === false) return;
  try {
    Deno.removeSync(path);
  } catch (error) {
    // An empty directory may be about to be renamed and filled. A recursive
    // deletion would go on in it under its new name.
    if (codeOf(error) === "ENOTEMPTY") await new Tree(path).sweep();
  }
}

/** Deletes scratch if its owner has died, which has freed the lock. */
async function sweepScratch(path: string, lockPath: string): Promise<void> {
  if (registeredAt(path)) return;
  using file = tryOpen(lockPath, false);
  if (!file) return;
  await new Tree(path).sweep();
  Deno.removeSync(lockPath);
}
