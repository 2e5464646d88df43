export function ensureDirSync(dir: string): void {
  Deno.mkdirSync(dir, { recursive: true });
}
