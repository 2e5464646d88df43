export { relative } from "node:path";
