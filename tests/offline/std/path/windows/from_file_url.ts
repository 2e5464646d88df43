// Only called on its own system, whose rules node:url follows.
export { fileURLToPath as fromFileUrl } from "node:url";
