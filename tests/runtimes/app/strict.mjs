// Under a Content-Security-Policy, which also forbids the import map that stands in a page.

import * as windlass from "./node_modules/windlass/dist/browser.js";

import { report, server } from "./report.mjs";
import suite from "./suite.mjs";

const where = new URL(location.href).searchParams.get("where");
await report(where, () => suite(windlass, server));
