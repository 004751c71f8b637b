// @ts-check
// One of these works at a time, on whatever machine it runs.

import { setTimeout as pause } from "node:timers/promises";

import { connect, Timeout } from "windlass";

const locks = await connect(process.env.WINDLASS_URL ?? "http://127.0.0.1:7420/examples");

try {
  await locks.request("report", { timeout: 60_000, onWait: ({ text }) => console.log(`waiting: ${text}`) }, async (lock) => {
    console.log(`working, with fencing token ${lock.fencingToken}`);
    for (let step = 1; step <= 3; step++) {
      // Stops in the middle if the lock is lost: another may have it by then.
      await pause(1_000, undefined, { signal: lock.signal });
      console.log(`step ${step} of 3`);
    }
  });
  console.log("done");
} catch (error) {
  if (!(error instanceof Timeout)) throw error;
  console.log(`not today: ${error.message}`);
  process.exitCode = 1;
} finally {
  await locks.close();
}
