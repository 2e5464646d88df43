/** Other processes, which are killed and stopped. */

import { delay } from "@std/async/delay";
import { resolve } from "@std/path/resolve";
import { open } from "../../mod.ts";
import { exists, has, names, Peer, script } from "../support.ts";
import { type Dice, Journal, makeDice } from "./journal.ts";

export const processes = new Journal("processes");
export const scratch = new Journal("scratch");

let hasEnded = false;
const peers = new Set<Peer>();
const killed = new Set<number>();

/** Kills what is left of a run that ends early. */
export async function endAll(): Promise<void> {
  hasEnded = true;
  for (const peer of peers) peer.kill();
  const ended = Promise.allSettled([...peers].map((peer) => peer.ended()));
  await Promise.race([ended, delay(3_000)]);
}

/** Where one process works after the other. */
class Post {
  #peer!: Peer;
  #listening!: Promise<void>;
  #mayEnd = false;
  /** What must be gone after the process that ended by itself. */
  #gone: string | undefined;

  constructor(
    readonly journal: Journal,
    readonly start: (seed: string) => Peer,
    readonly dice: Dice,
  ) {
    this.#fill();
  }

  #fill(): void {
    if (hasEnded) throw new Error("the run has ended");
    this.#peer = this.start(`${this.dice.below(2 ** 32)}`);
    peers.add(this.#peer);
    killed.delete(this.#peer.pid);
    this.#mayEnd = false;
    this.#gone = undefined;
    this.#note("starts");
    this.#listening = this.#listen();
  }

  async #listen(): Promise<void> {
    try {
      while (true) this.#hear(await this.#peer.line());
    } catch (error) {
      if (!this.#mayEnd) this.#violated("it goes on", error);
    }
  }

  #hear(line: string): void {
    const [what, whose] = line.split(" ");
    if (what === "alive") return;
    this.#note(line);
    if (what === "exit") {
      this.#mayEnd = true;
      this.#gone = whose;
    } else this.journal.count(what);
    if (what !== "found" || killed.has(Number(whose))) return;
    this.#violated("one holder", `also ${whose}, who was not killed`);
  }

  async refill(): Promise<void> {
    const gone = this.#gone;
    if (gone === undefined) return;
    await this.finish();
    if (exists(gone)) this.#violated(`it removes ${gone}`, "it did not");
    this.#fill();
  }

  async kill(): Promise<void> {
    this.#note("is killed");
    this.journal.count("kills");
    this.#mayEnd = true;
    killed.add(this.#peer.pid);
    this.#peer.kill();
    await this.#end();
    this.#fill();
  }

  stop(ms: number): void {
    this.#note(`is stopped for ${ms} ms`);
    this.journal.count("stops");
    const peer = this.#peer;
    peer.kill("SIGSTOP");
    setTimeout(() => peer.kill("SIGCONT"), ms);
  }

  /** Asks it to end, which it does unless it starves. */
  async finish(): Promise<void> {
    this.#note("is asked to end");
    this.#mayEnd = true;
    this.#peer.kill("SIGCONT");
    await this.#peer.go().catch(() => {}); // it may have ended
    await this.journal.soon(`${this.#peer.pid} ends`, this.#listening);
    await this.#end();
    const { success } = await this.#peer.ended();
    if (!success) this.#violated("it ends well", await this.#peer.ended());
  }

  async #end(): Promise<void> {
    const ended = this.#peer[Symbol.asyncDispose]();
    await this.journal.soon(`${this.#peer.pid} ends`, ended);
    peers.delete(this.#peer);
  }

  #violated(expected: string, seen: unknown): void {
    this.journal.violated(`of ${this.#peer.pid}: ${expected}`, seen);
  }

  #note(event: string): void {
    this.journal.note(`${this.#peer.pid} ${event}`);
  }
}

async function trouble(
  journal: Journal,
  { below, chance, pick }: Dice,
  isOver: () => boolean,
  starts: ((seed: string) => Peer)[],
): Promise<void> {
  const posts = starts.map((start) =>
    new Post(journal, start, makeDice(below(2 ** 32)))
  );
  while (!isOver()) {
    await delay(20 + below(200));
    for (const post of posts) await post.refill();
    const post = pick(posts);
    if (chance(0.5)) await post.kill();
    else post.stop(below(300));
  }
  await Promise.all(posts.map((post) => post.finish()));
}

const PEER = `
  const [path, own, seed] = args;
  const { below, chance, pick } = (${makeDice})(Number(seed));
  const pause = (ms) => new Promise((resume) => setTimeout(resume, ms));
  let isOver = false;
  heard().then(() => isOver = true);
  Deno.unrefTimer(setInterval(() => console.log("alive"), 5_000));
`;

/** The witness is a link that names the holder: it is never there without. */
const HOLD = `
  ${PEER}
  async function hold() {
    try {
      Deno.symlinkSync(String(Deno.pid), own);
    } catch (error) {
      if (!(error instanceof Deno.errors.AlreadyExists)) throw error;
      console.log("found", Deno.readLinkSync(own));
      Deno.removeSync(own);
      Deno.symlinkSync(String(Deno.pid), own);
    }
    console.log("grants");
    await pause(chance(0.1) ? 105 : below(5));
    Deno.removeSync(own);
    const last = below(10);
    if (last < 2) console.log("deletions");
    if (last === 0) Deno.removeSync(path);
    if (last === 1) {
      Deno.writeTextFileSync(path + Deno.pid, "");
      Deno.renameSync(path + Deno.pid, path);
    }
  }
`;

const LOCK = `
  ${HOLD}
  async function loop() {
    while (!isOver) {
      const signal = makeSignal();
      try {
        using _lock = await lock(path, { signal });
        await hold();
      } catch (error) {
        if (error !== signal?.reason) throw error;
        console.log("aborts");
      }
      if (chance(0.5)) await pause(below(20));
    }
  }
  await Promise.all([loop(), loop()]);
`;
const PATIENT = `const makeSignal = () => undefined; ${LOCK}`;
const IMPATIENT =
  `const makeSignal = () => AbortSignal.timeout(below(200)); ${LOCK}`;

const POLL = `
  ${HOLD}
  while (!isOver) {
    using file = Deno.openSync(path, { write: true, create: true });
    if (file.tryLockSync(true)) {
      const there = await Deno.stat(path).catch(() => undefined);
      if (there?.ino === file.statSync().ino) await hold();
    }
    file.unlockSync();
    await pause(100);
  }
`;

/** flock(1) does not look whether the file is still the one at the path. */
const FLOCK = `
  for turn in 1 2 3 4 5 6 7 8 9 10; do
    exec 9>>"$0"
    if flock -w 5 9 && [ /dev/fd/9 -ef "$0" ]; then
      if ! ln -s $$ "$1" 2>/dev/null; then
        echo "found $(readlink "$1")"
        ln -sfn $$ "$1"
      fi
      echo grants
      sleep 0.005
      rm "$1"
    else
      echo alive
    fi
    exec 9>&-
  done
  echo exit "$0.none"
`;

export async function soakProcesses(
  dir: string,
  dice: Dice,
  isOver: () => boolean,
): Promise<void> {
  const paths = [resolve(dir, "lock"), resolve(dir, "witness")];
  const start = (code: string) => (seed: string) =>
    script(code, [...paths, seed]);
  const flock = () => new Peer("sh", ["-c", FLOCK, ...paths]);
  await trouble(processes, dice, isOver, [
    start(PATIENT),
    start(PATIENT),
    start(IMPATIENT),
    start(POLL),
    has("flock") ? flock : start(IMPATIENT),
  ]);
}
const OWN = `
  ${PEER}
  async function loop(mine) {
    while (!isOver) {
      await using cog = await open(path);
      const name = pick([undefined, undefined, mine, "deep/" + mine, "shared"]);
      const release = name === "shared" && await cog.lock();
      const scratch = await cog.tempPath(name);
      console.log("scratches");
      for (let files = 1; files <= 1 + below(6); files++) {
        Deno.writeTextFileSync(scratch + "/" + files, scratch + Deno.pid);
        await pause(below(8));
        const seen = [...Deno.readDirSync(scratch)].length;
        if (seen !== files) throw new Error(scratch + " has " + seen + " files");
        for (let file = 1; file <= files; file++) {
          const text = Deno.readTextFileSync(scratch + "/" + file);
          if (text !== scratch + Deno.pid) throw new Error(text);
        }
      }
      if (release) {
        if (chance(0.5)) release(); // the next one then wipes it, or did
        await pause(below(8));
        continue;
      }
      if (chance(0.02)) {
        console.log("exit", scratch);
        Deno.exit();
      }
      await cog.close();
      const left = await Deno.lstat(scratch).catch(() => undefined);
      if (left) throw new Error("close left " + scratch);
    }
  }
  await Promise.all([loop(own + 1), loop(own + 2)]);
`;

export async function soakScratch(
  project: string,
  dice: Dice,
  isOver: () => boolean,
): Promise<void> {
  const start = (own: string) => (seed: string) =>
    script(OWN, [project, own, seed]);
  await trouble(scratch, dice, isOver, [start("x"), start("y"), start("z")]);
  const cog = await open(project);
  await cog.tempPath("deep/last"); // sweeps both directories
  await cog.close();
  const left = [...names(cog.root), ...names(resolve(cog.root, "deep"))]
    .filter((name) => name.startsWith(".scratch-"));
  if (left.length > 0) scratch.violated("nothing left to sweep", left);
}
