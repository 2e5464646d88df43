/**
 * Fetches a file into `.cog/cache/` once, however many scripts need it at the
 * same time, and prints its path.
 *
 *     deno run -A examples/cache.ts URL [PROJECT]
 */

import { type Dir, lock, open } from "@cog/dotcog";

const USAGE = "Usage: cache.ts URL [PROJECT]";
const [url, project = ".", ...more] = Deno.args;
if (url === "--help" || url === "-h") {
  console.log(USAGE);
  Deno.exit();
}
if (!URL.canParse(url) || /^-|^$/.test(project) || more.length > 0) {
  console.error(USAGE);
  Deno.exit(2);
}

// A bug gets a stack. A refusal by the system or Deno gets a line.
addEventListener("unhandledrejection", ({ reason }) => {
  if (!reason?.code && !(reason?.name in Deno.errors)) return;
  console.error(reason.message);
  Deno.exit(1);
});

// An exit removes scratch. A signal without a listener does not.
const codes = Deno.build.os === "windows"
  ? { SIGINT: 130 }
  : { SIGHUP: 129, SIGINT: 130, SIGTERM: 143 };
for (const [signal, code] of Object.entries(codes)) {
  Deno.addSignalListener(signal as Deno.Signal, () => Deno.exit(code));
}

await Deno.stat(project); // open() would create a missing one
await using cog = await open(project);
try {
  console.log(await cached(cog, url));
} catch (error) {
  console.error(`Cannot fetch ${url}: ${(error as Error).message}`);
  Deno.exitCode = 1;
}

/** The path of the file, which is fetched unless it exists. */
async function cached(cog: Dir, url: string): Promise<string> {
  const bytes = new TextEncoder().encode(url);
  const digest = await crypto.subtle.digest("SHA-256", bytes);
  const file = await cog.filePath(
    `cache/${new Uint8Array(digest).toHex()}`,
  );
  if (await exists(file)) return file;

  // The file's own lock: builds and fetches of other files do not wait.
  using _lock = await lock(`${file}.lock`, {
    onWait: () => console.error(`Waiting for another fetch of ${url}`),
  });
  if (await exists(file)) return file; // fetched during the wait

  const response = await fetch(url);
  if (!response.ok) throw new Error(`the server answers ${response.status}`);
  const scratch = await cog.tempPath({ dir: "cache" });
  await Deno.writeFile(`${scratch}/new`, response.body ?? new Uint8Array());
  await Deno.rename(`${scratch}/new`, file);
  return file;
}

async function exists(path: string): Promise<boolean> {
  return await Deno.stat(path).then(() => true, () => false);
}
