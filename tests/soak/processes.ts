/** Processes of every kind, which are stopped and killed. */

import { delay } from "@std/async/delay";
import { resolve } from "@std/path/resolve";
import { has, Peer, script } from "../support.ts";
import { type Dice, isOver, Journal, makeDice } from "./journal.ts";

export const processes = new Journal("processes");
export const peers = new Set<Peer>();
/** The names of killed processes, which may have left the witness behind. */
const killed = new Set<string>();

/** Waits with or without a signal. The witness is a link to the holder's name. */
const SCRIPT = `
  const [path, witness, name, seed] = args;
  const { below, chance } = (${makeDice})(Number(seed));
  const pause = (ms) => new Promise((resume) => setTimeout(resume, ms));
  const isPatient = chance(0.6);

  async function hold() {
    const found = await Deno.readLink(witness).catch(() => undefined);
    if (found) {
      console.log("found", found);
      Deno.removeSync(witness);
    }
    Deno.symlinkSync(name, witness);
    await pause(chance(0.1) ? 105 : below(5));
    Deno.removeSync(witness);
    if (chance(0.8)) return;
    console.log("deletions");
    if (chance(0.5)) return Deno.removeSync(path);
    Deno.writeTextFileSync(path + name, "");
    Deno.renameSync(path + name, path);
  }

  let isOver = false;
  heard().then(() => isOver = true);
  async function loop() {
    while (!isOver) {
      const signal = isPatient ? undefined : AbortSignal.timeout(below(900));
      try {
        using _lock = await lock(path, { signal });
        console.log("grants");
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

/** Waits, or polls. flock(1) does not check that the file still exists. */
const FLOCK = `
  trap "isOver=1" TERM
  while [ -z "$isOver" ]; do
    exec 9>>"$0"
    if flock "$3" 9 && [ /dev/fd/9 -ef "$0" ]; then
      [ -L "$1" ] && echo "found $(readlink "$1")" && rm "$1"
      ln -s "$2" "$1" && sleep 0.005 && rm "$1" && echo grants || exit
    else
      echo misses || exit
    fi
    exec 9>&-
    sleep 0.1
  done
`;

async function listen(name: string, peer: Peer): Promise<never> {
  while (true) {
    const [what, whose] = (await peer.line()).split(" ");
    processes.note(name, what, whose);
    if (what !== "found" || killed.has(whose)) continue;
    processes.violated(name, "one holder", `also ${whose}`);
  }
}

/** Runs one process after another, and stops and kills each. */
async function employ(post: string, dir: string, dice: Dice): Promise<void> {
  const { below, chance, fork } = dice;
  for (let turn = 1; !isOver(); turn++) {
    const name = `${post}.${turn}`;
    const args = [resolve(dir, "lock"), resolve(dir, "witness"), name];
    const isFlock = post.startsWith("flock");
    await using peer = isFlock
      ? new Peer("sh", ["-c", FLOCK, ...args, post.slice(5)])
      : script(SCRIPT, [...args, `${fork()}`]);
    peers.add(peer);
    const ended = listen(name, peer).catch(async () => {
      const status = await peer.ended();
      if (status.success || killed.has(name)) return;
      processes.violated(name, "no error", status);
    });
    await delay(below(1200));
    while (!isOver() && chance(0.5)) {
      processes.note(name, "stops");
      peer.kill("SIGSTOP");
      await delay(below(300));
      peer.kill("SIGCONT");
      await delay(below(1200));
    }
    if (isOver() && !isFlock) await peer.go();
    else {
      processes.note(name, "kills");
      killed.add(name);
      peer.kill(isOver() ? "SIGTERM" : "SIGKILL");
    }
    await processes.soon(name, "its end", ended);
  }
}

export async function soakProcesses(dir: string, dice: Dice): Promise<void> {
  const posts = ["a", "b", "c"];
  if (has("flock")) posts.push("flock-w5", "flock-n");
  const start = (post: string) => employ(post, dir, makeDice(dice.fork()));
  await Promise.all(posts.map(start));
}
