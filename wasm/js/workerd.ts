/** For Cloudflare's workers, which compile an imported `.wasm` when they are deployed. */

import { initSync } from "./core.js";
import { connector, type Connect } from "./locker.js";
import module from "./windlass.wasm";

export * from "./index.js";

/** Connects to a server: `http(s)://HOST[:PORT]/NAMESPACE`. Nothing is sent yet. */
export const connect: Connect = /* @__PURE__ */ connector(() => initSync({ module }));
