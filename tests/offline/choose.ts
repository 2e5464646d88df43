/**
 * Prints the flag with which Deno runs without JSR, and says so.
 *
 * It prints nothing if `REAL_STD` is set, or if JSR or a cache of it has every
 * entry point of the import map.
 */

import map from "./import_map.json" with { type: "json" };

const std = Object.keys(map.imports).filter((name) => name.startsWith("@std/"));
try {
  if (!Deno.env.get("REAL_STD")) {
    await Promise.all(std.map((name) => import(name)));
  }
} catch {
  console.error(
    "JSR is not reachable: testing with the stand-ins in tests/offline/",
  );
  console.log("--import-map=tests/offline/import_map.json");
}
