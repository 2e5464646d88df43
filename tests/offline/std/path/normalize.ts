export { normalize } from "node:path";
