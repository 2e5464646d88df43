import { posix as path } from "node:path";
export const { dirname } = path;
