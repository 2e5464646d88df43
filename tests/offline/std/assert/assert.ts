export { ok as assert } from "node:assert";
