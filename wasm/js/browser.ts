/** For browsers, and for what bundles for them: the WebAssembly is a file beside this one. */

import init from "./core.js";
import { connector, type Connect } from "./locker.js";

export * from "./index.js";

/** Connects to a server: `http(s)://HOST[:PORT]/NAMESPACE`. Nothing is sent yet. */
export const connect: Connect = /* @__PURE__ */ connector(() =>
  init({ module_or_path: new URL("./windlass.wasm", import.meta.url) }),
);
