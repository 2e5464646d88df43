export { resolve } from "node:path";
