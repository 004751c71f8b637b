// A page that does what its test says.

import { connect } from "windlass";

const locks = await connect(`${new URL(location.href).searchParams.get("server")}/life`);

let lock;
globalThis.hold = async (name, options) => {
  lock = await locks.acquire(name, options);
  return String(lock.fencingToken);
};
globalThis.giveBack = () => lock.release();
globalThis.standInLine = (name, options) => void locks.acquire(name, options).catch(() => {});
globalThis.state = () => ({
  held: lock.isHeld(),
  token: String(lock.fencingToken),
  aborted: lock.signal.aborted,
  reason: lock.signal.reason?.reason ?? null,
});
globalThis.lost = () =>
  new Promise((resolve) => {
    const tell = () => resolve(lock.signal.reason.reason);
    if (lock.signal.aborted) tell();
    else lock.signal.addEventListener("abort", tell);
  });

let worker;
/** The same in a worker. */
globalThis.work = (name, options) =>
  new Promise((resolve, reject) => {
    worker = new Worker(`life-worker.mjs${location.search}`, { type: "module" });
    worker.onmessage = ({ data }) => resolve(data);
    worker.onerror = ({ message }) => reject(new Error(message));
    worker.postMessage([name, options]);
  });
globalThis.kill = () => worker.terminate();

// How often a timer that should ring ten times a second does, and whether the page was put away and came back.
globalThis.rung = 0;
setInterval(() => globalThis.rung++, 100);
addEventListener("pageshow", ({ persisted }) => (globalThis.cameBack = persisted));
globalThis.ready = true;
