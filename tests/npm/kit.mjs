// A server for a test file, lockers of it, and what they are tested with.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { after, before } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";

import { connect } from "windlass";

import { serve, WINDLASS } from "../browser/server.mjs";

export { sleep };
export { ask, hold, id, release, serve, wait, WINDLASS } from "../browser/server.mjs";

/** Longer than anything takes on a busy machine. */
export const SOON = 20_000;

/** The server of this test file. */
export function server(options) {
  const place = { url: "", listen: "" };
  let running;
  before(async () => {
    running = await serve(options);
    Object.assign(place, { url: running.url, listen: running.listen });
  });
  after(() => running?.end());
  return place;
}

let spaces = 0;

/** Makes lockers of a namespace that is this test's own, and closes them at its end. */
export function space(t, place) {
  const name = `space-${process.pid}-${++spaces}`;
  const url = `${place.url}/${name}`;
  const locker = async (options) => {
    const locks = await connect(url, options);
    t.after(() => locks.close().catch(() => {}));
    return locks;
  };
  return { name, url, locker };
}

/** The command `windlass`; `ended` gives its status and what it wrote. */
export function windlass(...args) {
  return program(WINDLASS, args);
}

export function program(path, args, env = {}) {
  // Beside the installed package, wherever the tests were started.
  const cwd = fileURLToPath(new URL(".", import.meta.url));
  const child = spawn(path, args, { cwd, stdio: ["pipe", "pipe", "pipe"], env: { ...process.env, ...env } });
  let out = "";
  child.stdout.setEncoding("utf8").on("data", (text) => (out += text));
  child.stderr.setEncoding("utf8").on("data", (text) => (out += text));
  const ended = once(child, "close").then(([status]) => ({ status, out }));
  return { child, ended, said: () => out };
}

/** Until it is so. */
export async function until(what, is_so) {
  const end = Date.now() + SOON;
  for (;;) {
    const is = await is_so();
    if (is) return is;
    assert.ok(Date.now() < end, `never: ${what}`);
    await sleep(10);
  }
}

/** Until there are so many waiters for a lock. */
export const waiters = (locks, name, count) =>
  until(`${count} wait for ${name}`, async () => (await locks.query()).pending.filter((one) => one.name === name).length === count);

/** A promise and what settles it. */
export function gate() {
  let open;
  const opened = new Promise((resolve) => (open = resolve));
  return { open, opened };
}

/** What a promise rejects with. */
export async function failure(promise) {
  return promise.then(
    (value) => assert.fail(`it gave ${String(value)}`),
    (error) => error,
  );
}

/** Until a signal is aborted: its reason. */
export async function aborted(signal) {
  if (!signal.aborted) await once(signal, "abort", { signal: AbortSignal.timeout(SOON) });
  return signal.reason;
}
