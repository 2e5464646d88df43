import { explore, taskOf } from "./interleavings.ts";
import { scenarios } from "./interleavings/scenarios.ts";
import { WINDOWS } from "./support.ts";

Deno.test("interleavings.ts finds no fault", {
  ignore: WINDOWS, // where an open file is not deleted at once
}, async (test) => {
  const names = Object.keys(scenarios);
  for (const [i, result] of explore(names.map(taskOf)).entries()) {
    await test.step(`in ${names[i]}`, async () => {
      const { fault } = await result;
      if (fault !== undefined) throw new Error(fault);
    });
  }
});
