/** For Node, Deno and Bun, and wherever there is no second file: the WebAssembly is text in this package. */

import { initSync } from "./core.js";
import { connector, type Connect } from "./locker.js";

export * from "./index.js";

/** Connects to a server: `http(s)://HOST[:PORT]/NAMESPACE`. Nothing is sent yet. */
export const connect: Connect = /* @__PURE__ */ connector(async () => {
  const { default: base64 } = await import("./wasm-text.js");
  initSync({ module: Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0)) });
});
