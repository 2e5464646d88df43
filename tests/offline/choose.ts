/**
 * Prints the flag that lets Deno run without JSR, and a notice on standard
 * error.
 *
 * The flag names an import map of stand-ins: small modules in `std/` that do
 * what the functions of `@std` do, as far as this project uses them.
 *
 * The script prints nothing if `REAL_STD` is set, or if JSR or a cache of it
 * has every entry point of the import map.
 */

import map from "./import_map.json" with { type: "json" };

const std = Object.keys(map.imports).filter((name) => name.startsWith("@std/"));
if (!Deno.env.get("REAL_STD")) {
  const { promise: isSilent, reject } = Promise.withResolvers();
  setTimeout(reject, 10_000); // some networks drop a request instead of refusing it
  const imports = Promise.all(std.map((name) => import(name)));
  await Promise.race([imports, isSilent]).catch(() => {
    console.error(
      "JSR is not reachable: using the stand-ins for @std in tests/offline/",
    );
    console.log("--import-map=tests/offline/import_map.json");
  });
}
Deno.exit(); // even if imports are still under way
