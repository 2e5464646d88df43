import { win32 as path } from "node:path";
export const { dirname } = path;
