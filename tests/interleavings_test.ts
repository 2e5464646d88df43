import { Explorer } from "./interleavings/explore.ts";
import { scenarios } from "./interleavings/scenarios.ts";
import { WINDOWS } from "./support.ts";

Deno.test("interleavings.ts finds no fault", {
  ignore: WINDOWS, // where an open file is not deleted at once
}, async (test) => {
  using explorer = new Explorer();
  for (const [name, { most = 2 }] of Object.entries(scenarios)) {
    await test.step(`in ${name}, with ${most} preemptions`, async () => {
      const { fault } = await explorer.explore(name, most);
      if (fault !== undefined) throw new Error(fault);
    });
  }
});
