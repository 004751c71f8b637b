// For a bundler: a page and its worker, both by the package's name.

import * as windlass from "windlass";

import { answerOf, report, server } from "./report.mjs";
import suite from "./suite.mjs";

await report("page", () => suite(windlass, server));
await report("module worker", () => {
  const worker = new Worker(new URL("./bundle-worker.mjs", import.meta.url), { type: "module" });
  worker.postMessage(server);
  return answerOf(worker);
});
