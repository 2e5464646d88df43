import { assertEquals } from "@std/assert/equals";
import { local, RESOLUTION } from "./support.ts";

Deno.test("soak.ts finds no violation in three seconds", async () => {
  const flags = ["--quiet", "--allow-all", ...RESOLUTION];
  const args = ["run", ...flags, local("soak.ts"), "3"];
  const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args,
  }).output();
  const text = new TextDecoder().decode(stdout);
  assertEquals(code, 0, text + new TextDecoder().decode(stderr));
  assertEquals(text.trim().split(/\r?\n/).at(-1), "0 violations", text);
});
