/**
 * Whether both are of one file or directory, and the open one is not deleted. The
 * birth time tells them apart where inode numbers are missing, rounded or reused.
 */
export function isSame(open: Deno.FileInfo, other: Deno.FileInfo): boolean {
  return open.nlink !== 0 && open.dev === other.dev && open.ino === other.ino &&
    open.birthtime?.getTime() === other.birthtime?.getTime();
}
