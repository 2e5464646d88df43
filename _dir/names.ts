import { normalize as posixNormalize } from "@std/path/posix/normalize";
import { normalize as windowsNormalize } from "@std/path/windows/normalize";

/** The name of the lock file inside the state directory. */
export const LOCK_NAME = "cog.lock";

const SCRATCH = "\\.scratch-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}";
/** Matches the names of the lock files of scratch. */
export const SCRATCH_LOCK = new RegExp(`^${SCRATCH}\\.lock$`);
const RESERVED = new RegExp(`^${SCRATCH}(\\.lock)?$`, "i");

/** Names of something else on Windows: streams, short names, devices. */
const ALIAS =
  /:|~\d|[. ]$|^(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[\d¹²³]) *(\.|$)/i;

/** Why a name inside `.cog/` is refused, or `undefined`. */
export function objection(name: string, windows: boolean): string | undefined {
  if (typeof name !== "string") return "is not a string"; // in untyped code
  const path = windows ? windowsNormalize(name) : posixNormalize(name);
  const separator = windows ? "\\" : "/";
  const parts = path.split(separator).filter((part) => part && part !== ".");
  if (name.includes("\0")) return "contains a NUL";
  // Two of those can be one file.
  if (!name.isWellFormed()) return "is not well-formed Unicode";
  if (path.startsWith(separator)) return "is absolute";
  if (/^[a-z]:/i.test(name)) return "begins with a drive letter";
  if (parts[0] === "..") return "leads outside";
  if (parts[0]?.toLowerCase() === LOCK_NAME) return "is for the lock file";
  if (parts.some((part) => RESERVED.test(part))) {
    return "is reserved for scratch";
  }
  if (windows && parts.some((part) => ALIAS.test(part))) {
    return "is special on Windows";
  }
  return undefined;
}
