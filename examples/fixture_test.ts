/**
 * A `deno test` fixture: each test has a `.cog` of its own, and leaves none.
 *
 *     deno test -A examples/fixture_test.ts
 */

import { openTemp } from "@cog/dotcog";
import { assertEquals } from "@std/assert/equals";

/** The tested function. It counts the weights that a project has imported. */
async function countWeights(root: string): Promise<number> {
  let count = 0;
  for await (const _ of Deno.readDir(`${root}/weights`)) count++;
  return count;
}

Deno.test("countWeights() counts none in a new project", async () => {
  await using cog = await openTemp();
  await cog.path("weights");
  assertEquals(await countWeights(cog.root), 0);
});

Deno.test("countWeights() counts each file", async () => {
  await using cog = await openTemp();
  for (const name of ["a.bin", "b.bin"]) {
    await Deno.writeTextFile(await cog.filePath(`weights/${name}`), "");
  }
  assertEquals(await countWeights(cog.root), 2);
});
