export function ensureDirSync(dir: string): void {
  try {
    Deno.mkdirSync(dir, { recursive: true });
  } catch (error) {
    if (!(error instanceof Deno.errors.AlreadyExists)) throw error;
    // Another one may have just created it. A dangling link is NotFound here.
    if (!Deno.statSync(dir).isDirectory) {
      throw new Error(`Cannot ensure ${dir}: it is not a directory`);
    }
  }
}
