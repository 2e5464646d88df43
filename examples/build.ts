/**
 * Builds a project, one build at a time: stages its files in scratch, publishes
 * them as `.cog/dist`, and writes a manifest of them. It leaves out symbolic
 * links, pipes, sockets, empty directories, and everything named `.cog`,
 * `.git`, `coverage` or `node_modules`.
 *
 *     deno run --allow-read --allow-write examples/build.ts [PROJECT]
 */

import { open } from "@cog/dotcog";
import { walk } from "@std/fs/walk";
import { relative } from "@std/path/relative";
import { resolve } from "@std/path/resolve";
import { createHash } from "node:crypto"; // WebCrypto digests no stream

const USAGE = "Usage: build.ts [PROJECT]";
const [project = ".", ...more] = Deno.args;
if (project === "--help" || project === "-h") {
  console.log(USAGE);
  Deno.exit();
}
if (/^-|^$/.test(project) || more.length > 0) {
  console.error(USAGE);
  Deno.exit(2);
}

// A bug gets a stack. A refusal by the system or Deno gets a line.
addEventListener("unhandledrejection", ({ reason }) => {
  if (!reason?.code && !(reason?.name in Deno.errors)) return;
  console.error(reason.message);
  Deno.exit(1);
});

const rewind = Deno.stderr.isTerminal() ? "\r\x1b[K" : "";

// An exit removes scratch. A signal without a listener does not.
const codes = Deno.build.os === "windows"
  ? { SIGINT: 130 }
  : { SIGHUP: 129, SIGINT: 130, SIGTERM: 143 };
for (const [signal, code] of Object.entries(codes)) {
  Deno.addSignalListener(signal as Deno.Signal, () => {
    console.error(`${rewind}Stopped`);
    Deno.exit(code);
  });
}

await Deno.stat(project); // open() would create a missing one
await using cog = await open(project);
await cog.lock({ // held until cog closes
  onWait: () => console.error(`Waiting for another build in ${cog.projectDir}`),
});
const dist = resolve(cog.root, "dist");
const kept = resolve(cog.root, "old", "dist");
// A kill between the two renames below leaves the published build there.
if (!await exists(dist) && await exists(kept)) Deno.renameSync(kept, dist);
const staging = await cog.tempPath("staging");

const files: { path: string; size: number; sha256: string }[] = [];
let total = 0;
const progress = rewind ? setInterval(() => show(summary()), 200) : undefined;

// "/." since the project itself may have a name to skip.
const entries = walk(`${cog.projectDir}/.`, {
  includeDirs: false,
  includeSymlinks: false,
  skip: [/[\\/](\.cog|\.git|coverage|node_modules)$/],
});
const buffer = new Uint8Array(2 ** 20); // a stream's chunks cost more time
for await (const entry of entries) {
  if (!entry.isFile) continue; // a pipe or a socket
  const path = relative(cog.projectDir, entry.path);
  const staged = resolve(staging, path);
  // An asynchronous mkdir at Ctrl-C could create the scratch again.
  Deno.mkdirSync(resolve(staged, ".."), { recursive: true });

  using original = await Deno.open(entry.path);
  const { mode } = await original.stat();
  using copy = await Deno.open(staged, {
    write: true,
    createNew: true,
    mode: mode ?? undefined,
  });
  const writer = copy.writable.getWriter();
  const hash = createHash("sha256");
  let size = 0;
  for (let n; (n = await original.read(buffer)) !== null; size += n) {
    const chunk = buffer.subarray(0, n);
    hash.update(chunk);
    await writer.write(chunk);
    total += n;
  }
  await writer.close();
  files.push({
    path: path.replaceAll("\\", "/"),
    size,
    sha256: hash.digest("hex"),
  });
}
files.sort((a, b) => a.path < b.path ? -1 : 1);

const json = JSON.stringify(files, null, 2) + "\n";
const written = `${await cog.tempPath({ dir: "cache" })}/manifest.json`;
await Deno.writeTextFile(written, json);
const manifest = await cog.filePath("cache/manifest.json");
const isPublished = await exists(dist);
await cog.tempPath("old");

// A rename replaces no full directory. So the old one moves into scratch, which
// is removed on close. The scratch has a name, since the next `tempPath` would
// delete nameless scratch of a killed build. Close leaves the new one, which is
// scratch no more. No Ctrl-C comes between synchronous calls.
if (isPublished) Deno.renameSync(dist, kept);
try {
  Deno.renameSync(staging, dist);
} catch (error) {
  if (isPublished) Deno.renameSync(kept, dist); // the old one stays published
  throw error;
}
Deno.renameSync(written, manifest); // replaces the old one in one step

clearInterval(progress);
show("");
console.log(`${summary()}\nPublished: ${dist}\nManifest: ${manifest}`);

async function exists(path: string): Promise<boolean> {
  return await Deno.stat(path).then(() => true, () => false);
}

function summary(): string {
  return `Staged files: ${files.length} (${readable(total)})`;
}

function readable(bytes: number): string {
  if (bytes < 1000) return `${bytes} bytes`;
  const power = Math.min(Math.floor(Math.log10(bytes) / 3), 4);
  return `${(bytes / 1000 ** power).toFixed(1)} ${" kMGT"[power]}B`;
}

function show(text: string): void {
  if (rewind) Deno.stderr.writeSync(new TextEncoder().encode(rewind + text));
}
