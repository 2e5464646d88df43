/**
 * One process of a scenario, played by a worker. Each call that reaches the file
 * system or a lock is a step: the worker asks first. `flock` excludes open files
 * from each other, so a worker is as good as a process.
 */

import { quietly } from "../../_error.ts";
import { clock } from "../../_lock/clock.ts";
import { Place, places, system } from "../../_lock/place.ts";
import { Port, State } from "./port.ts";
import { scenarios } from "./scenarios.ts";
import { atomicsOf, stand, StandWorker } from "./stand.ts";

const real = { ...Deno };
const proto = Deno.FsFile.prototype;
const { tryLockSync } = proto;
const dispose = proto[Symbol.dispose];

let port: Port;
let isPlaying = false;
let now = 0;
const openFiles = new Map<Deno.FsFile, string>();

/** Asks for permission to do what the label says. */
function step(label: string, state: State = State.Ready): void {
  if (isPlaying && !port.isLooking) port.ask(state, label);
}

const short = (path: string | URL) =>
  `${path}`.slice(port.play.directory.length + 1) || ".";

/** Replaces a call with one that takes a step first. */
function precede(
  object: object,
  name: string,
  subject: (file: Deno.FsFile, ...args: string[]) => string | undefined,
): void {
  const calls = object as Record<string, (...args: unknown[]) => unknown>;
  const call = calls[name];
  calls[name] = function (this: Deno.FsFile, ...args: unknown[]) {
    const what = subject(this, ...args.map(String));
    step(`${name.replace("Sync", "")} ${what}`);
    return call.apply(this, args);
  };
}

function wrap(): void {
  const ofPaths = ["lstatSync", "statSync", "realPathSync"];
  for (const name of [...ofPaths, "writeTextFileSync"]) {
    precede(Deno, name, (_, path) => short(path));
  }
  precede(Deno, "renameSync", (_, ...paths) => paths.map(short).join(" to "));
  for (const name of ["unlockSync", "statSync", "close"]) {
    precede(proto, name, (file) => openFiles.get(file));
  }
  proto.tryLockSync = function (exclusive) {
    step(`${exclusive ? "tryLock" : "share"} ${openFiles.get(this)}`);
    return tryLockSync.call(this, exclusive);
  };
  Deno.stat = async (path) => await Deno.statSync(path);
  Deno.open = async (path, options) => await Deno.openSync(path, options);
  Deno.openSync = (path, options) => {
    step(`open ${short(path)}`);
    const file = real.openSync(path, options);
    openFiles.set(file, short(path));
    return file;
  };
  Deno.readDirSync = (path) => {
    step(`list ${short(path)}`);
    const entries = [...real.readDirSync(path)];
    return entries.sort((a, b) => a.name < b.name ? -1 : 1)[Symbol.iterator]();
  };
  Deno.mkdirSync = (path, options) => mkdir(`${path}`, options?.recursive);
  Deno.removeSync = (path, options) => {
    for (const _ of deletion(`${path}`, options?.recursive));
  };
  Deno.remove = async (path, options) => {
    // The process does other things meanwhile.
    for (const _ of deletion(`${path}`, options?.recursive)) await null;
  };
  proto.lock = async function (exclusive) {
    await null;
    step(`lock ${openFiles.get(this)}`);
    while (!tryLockSync.call(this, exclusive)) {
      step(`wait for ${openFiles.get(this)}`, State.AwaitsRelease);
      await null;
    }
  };
  const { close } = proto; // a step by now
  proto.close = function () {
    close.call(this);
    openFiles.delete(this);
  };
  proto[Symbol.dispose] = function () {
    if (!isPlaying) dispose.call(this);
    else if (openFiles.has(this)) this.close();
  };
  clock.now = () => now += 2 ** -10; // exactly, whatever was played before
  clock.setTimeout = ((end: () => void, ms: number) => {
    const timer = { end };
    queueMicrotask(async () => {
      await null;
      if (timer.end !== end) return;
      // Longer than asked for, so that a wait soon takes a place.
      now += 250 + Math.ceil(ms);
      // The pause of a killed process ends too, and its next step fails.
      quietly(() => step(`pause ${Math.ceil(ms)} ms`, State.AwaitsTimer));
      port.onPause();
      timer.end();
    });
    return timer;
  }) as unknown as typeof clock.setTimeout;
  clock.clearTimeout = (timer) => {
    if (timer) (timer as unknown as { end: () => void }).end = () => {};
  };
  system.startWorker = () => new StandWorker(port) as StandWorker & Worker;
  Object.assign(Atomics, atomicsOf(port));
  const { passTo } = Place.prototype;
  Place.prototype.passTo = function (file) {
    const passed = passTo.call(this, file);
    const { scenario, variant } = port.play;
    const mayFail = scenario === "place-read" || variant > 0;
    port.check(passed || mayFail, "the lock, without a gap");
    return passed;
  };
  Math.random = () => 0.5;
  crypto.randomUUID = () => {
    const last = `${port.shared[7]++}`; // in order of age, whoever asks
    return `00000000-0000-4000-8000-${last.padStart(12, "0")}`;
  };
}

/** Parents one after the other, as the system does it. */
function mkdir(path: string, recursive?: boolean): void {
  try {
    step(`mkdir ${short(path)}`);
    real.mkdirSync(path);
  } catch (error) {
    if (!recursive) throw error;
    if (error instanceof Deno.errors.NotFound) {
      mkdir(path.slice(0, path.lastIndexOf("/")), true);
      mkdir(path, true);
    } else if (!(error instanceof Deno.errors.AlreadyExists)) throw error;
  }
}

/** Deletes entry by entry, and yields before each. Others may delete them first. */
function* deletion(path: string, recursive?: boolean): Generator<void> {
  if (recursive && real.lstatSync(path).isDirectory) {
    for (const { name } of Deno.readDirSync(path)) {
      try {
        yield* deletion(`${path}/${name}`, true);
      } catch (error) {
        if (!(error instanceof Deno.errors.NotFound)) throw error;
      }
    }
  }
  yield;
  step(`delete ${short(path)}`);
  real.removeSync(path);
}

/** Plays one process of one schedule after the other. */
addEventListener("message", async (event) => {
  const [memory, process] = (event as MessageEvent).data;
  port = new Port(memory, process);
  port.onKill = () => {
    for (const file of openFiles.keys()) dispose.call(file);
    openFiles.clear();
  };
  wrap();
  const library = await import("../../mod.ts"); // it sees the wrapped calls
  port.end(); // ready for its first play
  for (;;) {
    port.awaitPlay();
    if (!port.play) return close();
    const { scenario, directory, variant } = port.play;
    isPlaying = true;
    now += 1_000_000; // the library has forgotten what it did before
    openFiles.clear();
    port.onPause = () => {};
    const { processes, sweeps } = scenarios[scenario];
    port.hasStand = processes.includes(stand);
    let error: Error | undefined;
    await processes[process](library, directory, port, variant)
      .catch((reason) => error = reason);
    for (let i = 0; i < 50; i++) await null; // it may have more to do
    isPlaying = false;
    if (sweeps) dispatchEvent(new Event("unload")); // a kept claim ends only then
    places.clear();
    if (openFiles.size > 0 && !sweeps) {
      error ??= new Error(`not closed: ${[...openFiles.values()]}`);
    }
    port.end(error);
  }
});
