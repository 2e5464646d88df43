import { join } from "node:path";

interface Options {
  includeDirs: false;
  includeSymlinks: false;
  skip: RegExp[];
}

export async function* walk(
  root: string,
  options: Options,
): AsyncIterableIterator<Deno.DirEntry & { path: string }> {
  const skips = (path: string) => options.skip.some((it) => it.test(path));
  if (skips(root)) return;
  for await (const entry of Deno.readDir(root)) {
    const path = join(root, entry.name);
    if (entry.isDirectory) yield* walk(path, options);
    else if (entry.isFile && !skips(path)) yield { ...entry, path };
  }
}
