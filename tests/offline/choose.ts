/**
 * Prints the flag with which Deno runs without JSR, and says so; nothing where
 * JSR, or a cache of it, has the real packages.
 */
try {
  await import("@std/assert/equals");
  await import("@std/async/delay");
  await import("@std/fs/walk");
  await import("@std/path/resolve");
} catch {
  console.error("JSR cannot be reached: stand-ins of tests/offline/ for @std");
  console.log("--import-map=tests/offline/import_map.json");
}
