// The suite in a page, and in each kind of worker. One after the other: over HTTP/1.1 they share six connections.

import * as windlass from "windlass";

import { answerOf, report, server } from "./report.mjs";
import suite from "./suite.mjs";

const script = `worker.mjs?server=${encodeURIComponent(server)}`;
const type = "module";

await report("page", () => suite(windlass, server));
await report("module worker", () => answerOf(new Worker(script, { type })));
await report("shared worker", () => {
  const worker = new SharedWorker(script, { type });
  return answerOf(worker.port, worker);
});
await report("service worker", async () => {
  await navigator.serviceWorker.register(script, { type });
  const { active } = await navigator.serviceWorker.ready;
  const { port1, port2 } = new MessageChannel();
  active.postMessage("run", [port2]);
  return answerOf(port1, active);
});
