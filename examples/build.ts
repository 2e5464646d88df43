/**
 * Builds a project in its `.cog/`, one build at a time: stages its files in
 * scratch and writes a manifest of them.
 *
 *     deno run --allow-read --allow-write examples/build.ts [PROJECT]
 */

import { open } from "@cog/dotcog";
import { walk } from "@std/fs/walk";
import { relative } from "@std/path/relative";
import { resolve } from "@std/path/resolve";
import { createHash } from "node:crypto"; // WebCrypto digests no stream

const [project = "."] = Deno.args;
if (project === "--help") {
  console.log("Usage: build.ts [PROJECT]");
  Deno.exit();
}
const info = await Deno.stat(project).catch(() => undefined);
if (!info?.isDirectory) { // open() would create it
  console.error(`${project} is not a readable directory`);
  Deno.exit(2);
}

const rewind = Deno.stdout.isTerminal() ? "\r\x1b[K" : "";

// An exit removes scratch. A signal without a listener does not.
Deno.addSignalListener("SIGINT", () => {
  console.error(`${rewind}Stopped`);
  Deno.exit(130);
});

await using cog = await open(project);
await cog.lock({ // held until cog closes
  onWait: () => console.log(`Waiting for another build in ${cog.projectDir}`),
});
const staging = await cog.tempPath("staging");

const files: { path: string; size: number; sha256: string }[] = [];
let total = 0;
const progress = rewind ? setInterval(() => print(summary()), 200) : undefined;

const entries = walk(cog.projectDir, {
  includeDirs: false,
  includeSymlinks: false,
  skip: [/[\\/](\.git|\.cog|node_modules)$/],
});
for await (const entry of entries) {
  if (!entry.isFile) continue; // a pipe or a socket
  const path = relative(cog.projectDir, entry.path);
  const staged = resolve(staging, path);
  // An asynchronous mkdir at Ctrl-C could create the scratch again.
  Deno.mkdirSync(resolve(staged, ".."), { recursive: true });
  await Deno.copyFile(entry.path, staged);

  // The copy is read, since the original may have changed by now.
  const hash = createHash("sha256");
  const file = await Deno.open(staged);
  const before = total;
  for await (const chunk of file.readable) {
    hash.update(chunk);
    total += chunk.length;
  }
  files.push({
    path: path.replaceAll("\\", "/"),
    size: total - before,
    sha256: hash.digest("hex"),
  });
}
files.sort((a, b) => a.path < b.path ? -1 : 1);

// Nobody sees half a manifest: the rename replaces the old one in one step.
const json = JSON.stringify(files, null, 2) + "\n";
const scratch = await cog.tempPath({ dir: "cache" });
const manifest = await cog.filePath("cache/manifest.json");
await Deno.writeTextFile(`${scratch}/new`, json);
await Deno.rename(`${scratch}/new`, manifest);

clearInterval(progress);
print(`${summary()}\n`);
print(`${manifest} stays, ${staging} is removed\n`);

function summary(): string {
  return `Staged files: ${files.length} (${readable(total)})`;
}

function readable(bytes: number): string {
  if (bytes < 1000) return `${bytes} bytes`;
  const power = Math.min(Math.floor(Math.log10(bytes) / 3), 4);
  return `${(bytes / 1000 ** power).toFixed(1)} ${" kMGT"[power]}B`;
}

function print(text: string): void {
  Deno.stdout.writeSync(new TextEncoder().encode(rewind + text));
}
