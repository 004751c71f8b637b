// A module worker, shared worker or service worker, without a bundler: import maps are of pages only.

import * as windlass from "./node_modules/windlass/dist/browser.js";
import suite from "./suite.mjs";

const server = new URL(location.href).searchParams.get("server");
const run = async (to) => to.postMessage(await suite(windlass, server));

if ("onconnect" in self) self.onconnect = ({ ports: [page] }) => run(page);
else if ("skipWaiting" in self) self.onmessage = (message) => message.waitUntil(run(message.ports[0]));
else run(self);
