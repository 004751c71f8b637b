// For bundlers that leave files beside a module behind, such as esbuild.

import * as windlass from "windlass/inline";

import { report, server } from "./report.mjs";
import suite from "./suite.mjs";

report("page", () => suite(windlass, server));
