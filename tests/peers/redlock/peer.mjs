// Drives node-redlock by lines on standard input; answers each with a line, as ../redis does.
//
//	node peer.mjs ADDRESS

import { readFileSync, writeFileSync } from "node:fs";
import { createInterface } from "node:readline";
import Redis from "ioredis";
import Redlock from "redlock";

const [host, port] = process.argv[2].split(":");
const client = new Redis({ host, port: Number(port) });
const waits = new Redlock([client], { retryCount: -1, retryDelay: 10, retryJitter: 5 });
const tries = new Redlock([client], { retryCount: 0 });
const locks = new Map();

const commands = {
  lock: (id, key, millis) => take(waits, id, key, millis),
  try: (id, key, millis) => take(tries, id, key, millis),
  extend: (id, millis) => tell(id, "extended", async lock => locks.set(id, await lock.extend(Number(millis)))),
  unlock: id => tell(id, "released", lock => lock.unlock()),
  async count(id, key, times, file) {
    for (let n = 0; n < Number(times); n++) {
      const lock = await waits.lock(key, 30_000);
      writeFileSync(file, String(Number(readFileSync(file, "utf8")) + 1));
      await lock.unlock();
    }
    console.log(`counted ${id}`);
  },
};

async function take(redlock, id, key, millis) {
  try {
    locks.set(id, await redlock.lock(key, Number(millis)));
    console.log(`acquired ${id}`);
  } catch (error) {
    refused(error);
    console.log(`busy ${id}`);
  }
}

async function tell(id, done, what) {
  try {
    await what(locks.get(id));
    console.log(`${done} ${id}`);
  } catch (error) {
    refused(error);
    console.log(`lost ${id}`);
  }
}

function refused(error) {
  if (!(error instanceof Redlock.LockError)) throw error;
}

process.on("unhandledRejection", error => {
  console.log(`error ${error.message}`);
  process.exit(1);
});
await client.ping();
console.log("ready");
for await (const line of createInterface({ input: process.stdin })) {
  const [command, ...words] = line.split(" ");
  commands[command](...words);
}
process.exit(0);
