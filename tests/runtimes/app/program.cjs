// CommonJS in Node.

const windlass = require("windlass");

import("./suite.mjs").then(async ({ default: suite }) => {
  console.log(JSON.stringify(await suite(windlass, process.argv.at(-1))));
});
