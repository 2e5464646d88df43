/**
 * Builds a project in its `.cog`, one build at a time: stages its files in a
 * scratch directory and writes a manifest of them, which is all that stays.
 *
 *     deno task demo [PROJECT]
 */

import { open } from "@cog/dotcog";
import { walk } from "@std/fs/walk";
import { fromFileUrl } from "@std/path/from-file-url";
import { relative } from "@std/path/relative";
import { resolve } from "@std/path/resolve";

// Ctrl-C ends the script like any other exit, and that takes the scratch along.
Deno.addSignalListener("SIGINT", () => Deno.exit(130));

// Fails where there is no such project, for open() would make it.
const project = await Deno.realPath(
  Deno.args[0] ?? fromFileUrl(import.meta.resolve("../")),
);

await using cog = await open(project);
await cog.lock({
  onWait: () => console.log(`Waiting for another build in ${cog.projectDir}`),
});

const build = await cog.tempPath("build");
console.log(`Staging ${cog.projectDir} in ${build}`);

const files = [];
let total = 0;
for await (
  const entry of walk(cog.projectDir, {
    includeDirs: false,
    includeSymlinks: false,
    skip: [/[\\/](\.git|\.cog|node_modules)$/],
  })
) {
  if (!entry.isFile) continue; // a pipe, a socket
  const path = relative(cog.projectDir, entry.path);
  const staged = resolve(build, path);
  // Synchronous: one under way at Ctrl-C could make the scratch anew.
  Deno.mkdirSync(resolve(staged, ".."), { recursive: true });
  await Deno.copyFile(entry.path, staged);

  // What was staged counts, whatever becomes of the original meanwhile.
  const bytes = await Deno.readFile(staged);
  const digest = await crypto.subtle.digest("SHA-256", bytes);
  files.push({
    path: path.replaceAll("\\", "/"),
    size: bytes.length,
    sha256: Array.from(
      new Uint8Array(digest),
      (byte) => byte.toString(16).padStart(2, "0"),
    ).join(""),
  });
  total += bytes.length;
}
files.sort((a, b) => a.path < b.path ? -1 : 1);

const manifest = await cog.filePath("cache/manifest.json");
await Deno.writeTextFile(manifest, JSON.stringify(files, null, 2) + "\n");
console.log(`Staged ${files.length} files, ${total} bytes`);
console.log(`Wrote ${manifest}`);
