/**
 * Whether the file or directory of the open handle is the one that exists
 * elsewhere: the birth time tells them apart where numbers are missing, rounded
 * or given again.
 */
export function isSame(open: Deno.FileInfo, other: Deno.FileInfo): boolean {
  return open.nlink !== 0 && open.dev === other.dev && open.ino === other.ino &&
    open.birthtime?.getTime() === other.birthtime?.getTime();
}
