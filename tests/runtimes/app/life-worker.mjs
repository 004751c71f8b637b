import { connect } from "./node_modules/windlass/dist/browser.js";

const server = new URL(location.href).searchParams.get("server");

onmessage = async ({ data: [name, options] }) => {
  const locks = await connect(`${server}/life`);
  const lock = await locks.acquire(name, options);
  globalThis.kept = lock;
  postMessage(String(lock.fencingToken));
};
