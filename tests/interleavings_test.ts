import { Explorer } from "./interleavings/explore.ts";
import { scenarios } from "./interleavings/scenarios.ts";
import { WINDOWS } from "./support.ts";

for (const [name, { most = 2 }] of Object.entries(scenarios)) {
  Deno.test(
    `interleavings.ts finds no fault in ${name}, with ${most} preemptions`,
    {
      ignore: WINDOWS, // where an open file is not deleted at once
    },
    async () => {
      using explorer = new Explorer();
      const { fault } = await explorer.explore(name, most);
      if (fault !== undefined) throw new Error(fault);
    },
  );
}
