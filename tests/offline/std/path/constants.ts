export { sep as SEPARATOR } from "node:path";
