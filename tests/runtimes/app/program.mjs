// An ES module in Node, Deno or Bun.

import * as windlass from "windlass";

import suite from "./suite.mjs";

console.log(JSON.stringify(await suite(windlass, process.argv.at(-1))));
