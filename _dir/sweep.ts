import { quietly } from "../_error.ts";
import { clock } from "../_lock/clock.ts";
import { tryOpen } from "../_lock/file.ts";
import { joinName, look, WINDOWS } from "../_path.ts";
import { LOCK } from "./claim.ts";
import { registeredAt } from "./exits.ts";
import { SCRATCH_LOCK } from "./names.ts";
import { RECURSIVE } from "./tree.ts";

/** When directories whose sweep took long may be swept again. */
const rests = new Map<string, number>();

/**
 * Deletes what crashes have left in a directory, and nothing that has an owner. If
 * that blocked the thread for over 0.1 ms, only urgent sweeps of the directory begin
 * during the next 100 times that.
 */
export async function sweep(dir: string, isUrgent: boolean): Promise<void> {
  if (!isUrgent && clock.now() < (rests.get(dir) ?? 0)) return;
  let blocked = 0;
  const count = <T>(part: () => T): T => {
    const start = clock.now();
    const result = part();
    const end = clock.now();
    blocked += end - start;
    if (blocked > 0.1) rests.set(dir, end + 100 * blocked);
    return result;
  };
  // A link might lead elsewhere.
  const isLock = (it: Deno.DirEntry) => it.isFile && SCRATCH_LOCK.test(it.name);
  // The asynchronous call takes four times as long, however many there are.
  const list = () =>
    [...Deno.readDirSync(dir)].filter(isLock)
      .map(({ name }) => joinName(dir, name))
      .filter((path) => !registeredAt(path));
  for (const path of count(() => quietly(list)) ?? []) {
    // It may be somebody else's to delete. A later sweep tries again.
    await count(() => sweepScratch(path).catch(() => {}));
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
