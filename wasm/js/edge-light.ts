/** For Vercel's Edge Runtime, whose module is of another realm: only the asynchronous way takes it. */

import init from "./core.js";
import { connector, type Connect } from "./locker.js";
import module from "./windlass.wasm?module";

export * from "./index.js";

/** Connects to a server: `http(s)://HOST[:PORT]/NAMESPACE`. Nothing is sent yet. */
export const connect: Connect = /* @__PURE__ */ connector(() => init({ module_or_path: module }));
