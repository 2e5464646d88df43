import { assertEquals } from "@std/assert/equals";
import { objection } from "../_dir/names.ts";

const UUID = crypto.randomUUID();
const RESERVED = `.scratch-${UUID}`;

/** Why names are refused, on this or that system. */
const REFUSALS: [reason: string, names: string[], systems?: string][] = [
  ["contains a NUL", ["a\0b", "\0"]],
  ["is absolute", ["/", "/etc", "//x"]],
  ["is absolute", ["\\x", "\\\\host\\share", "\\\\?\\C:\\x"], "windows"],
  ["begins with a drive letter", ["c:", "C:x", "c:/x", "C:\\x"]],
  ["leads outside", ["..", "../x", "a/../../x", "../.cog/x"]],
  ["leads outside", ["..\\x", "a\\..\\..\\x"], "windows"],
  ["is for the lock file", ["cog.lock", "./COG.Lock", "cog.lock/x"]],
  ["is for the lock file", ["a\\..\\cog.lock", "cog.lock\\x"], "windows"],
  ["is not well-formed Unicode", ["\ud800", "a/\udfff/b"]],
  ["is reserved for scratch", [RESERVED, `a/${RESERVED}`, `${RESERVED}/a/b`]],
  ["is reserved for scratch", [`${RESERVED}.lock`, `a/.Scratch-${UUID}`]],
  [
    "is special on Windows",
    ["cog.lock.", "cog.lock ", "ab:c", "...", "x/... ", "a./b", "COG~1.LOC"]
      .concat("nul", "a/COM1", "Lpt9.txt/b", "aux .c", "a/../C:x"),
    "windows",
  ],
];

for (const [reason, names, systems = "every system"] of REFUSALS) {
  Deno.test(`objection() says on ${systems} of ${names.length} names: ${reason}`, () => {
    for (const name of names) {
      assertEquals(objection(name, true), reason);
      const elsewhere = systems === "windows" ? undefined : reason;
      assertEquals(objection(name, false), elsewhere);
    }
  });
}

Deno.test("objection() has nothing against ordinary names", () => {
  for (
    const name of ["", ".", "a/..", "a b", ".hidden", "é…", "-rf", "cog.lock2"]
      .concat("a/cog.lock", "null", "com", "com10", "a.nul", ".scratch-1")
  ) {
    assertEquals(objection(name, true), undefined);
    assertEquals(objection(name, false), undefined);
  }
});
