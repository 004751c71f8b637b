import * as windlass from "windlass";

import suite from "./suite.mjs";

onmessage = async ({ data: server }) => postMessage(await suite(windlass, server));
