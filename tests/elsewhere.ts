/** Runs each module of tests in a directory of its own, for the examples. */

const before = Deno.cwd();
const path = Deno.makeTempDirSync();
Deno.chdir(path);
addEventListener("unload", () => {
  Deno.chdir(before); // Windows keeps the directory in which a process is
  Deno.removeSync(path, { recursive: true });
});
