// What is measured, in one page or in two. Times are in milliseconds.

const server = new URL(location.href).searchParams.get("server");
const now = () => performance.timeOrigin + performance.now();

/** From nothing to the first lock: the script, the WebAssembly, the first answer of the server. */
globalThis.startUp = async () => {
  const begin = now();
  const { connect } = await import("./node_modules/windlass/dist/browser.js");
  const imported = now();
  const locks = await connect(`${server}/bench`);
  const compiled = now();
  const lock = await locks.acquire("first");
  const granted = now();
  await lock.release();
  globalThis.managers = { windlass: locks, platform: navigator.locks };
  return { script: imported - begin, wasm: compiled - imported, lock: granted - compiled, all: granted - begin };
};

/** One after the other, nobody else wants it: each time from the question to the grant. */
globalThis.alone = async (manager, times) => {
  const taken = [];
  for (let i = 0; i < times; i++) {
    const asked = now();
    await managers[manager].request("alone", () => void taken.push(now() - asked));
  }
  return taken;
};

/** A question and its answer, without a lock: what the network of a browser takes. */
globalThis.bare = async (times) => {
  const taken = [];
  for (let i = 0; i < times; i++) {
    const asked = now();
    await (await fetch(`${server}/v1/bench/acquire`, { method: "POST", body: "{}" })).arrayBuffer();
    taken.push(now() - asked);
  }
  return taken;
};

/** Holds a lock that another page wants, too, and is there again in line: when it came and when it went. */
globalThis.inTurn = async (manager, times, hold) => {
  const turns = [];
  let next;
  const ask = () =>
    managers[manager].request("in turn", async () => {
      const granted = now();
      if (turns.length + 1 < times) next = ask();
      await new Promise((over) => setTimeout(over, hold));
      turns.push({ granted, released: now() });
    });
  for (let turn = ask(); turn !== undefined; turn = next) {
    next = undefined;
    await turn;
  }
  return turns;
};
globalThis.ready = true;
