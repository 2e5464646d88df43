import { assertEquals } from "@std/assert/equals";
import { local, RESOLUTION } from "./support.ts";

Deno.test("soak.ts finds no violation in three seconds", async () => {
  const file = local("soak.ts");
  const args = ["run", "--quiet", "--allow-all", ...RESOLUTION, file, "3"];
  const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args,
  }).output();
  const text = new TextDecoder().decode(stdout);
  const story = text + new TextDecoder().decode(stderr);
  assertEquals(code, 0, story);
  assertEquals(text.trim().split(/\r?\n/).at(-1), "0 violations", story);
});
