// A program that uses one name of the package: what a bundler leaves out must not be missed.

import { connect } from "windlass";

import { report, server } from "./report.mjs";

report("one name", async () => {
  const locks = await connect(`${server}/few`);
  const held = await locks.request("few", (lock) => lock.isHeld());
  return { held };
});
