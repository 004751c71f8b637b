/** Loads the WebAssembly at the first `connect`: once, unless it failed. */

import init from "./core.js";
import { Unavailable, Unsupported } from "./errors.js";

/** A compiled `WebAssembly.Module`, its bytes, a `Response` with them, or the `URL` where they are. */
export type WasmSource = object;

/** How a host finds the package's WebAssembly. */
export type Load = () => unknown;

let loading: Promise<void> | undefined;

export function ready(own: Load, source?: WasmSource): Promise<void> {
  loading ??= load(own, source).catch((error: unknown) => {
    loading = undefined;
    throw explained(error);
  });
  return loading;
}

async function load(own: Load, source?: WasmSource): Promise<void> {
  if (typeof WebAssembly === "undefined") throw new Unsupported("this JavaScript host has no WebAssembly");
  await (source === undefined ? own() : init({ module_or_path: source }));
}

function explained(error: unknown): Error {
  if (error instanceof Unsupported) return error;
  const text = error instanceof Error ? error.message : String(error);
  if (error instanceof WebAssembly.CompileError && /unsafe-eval|Content Security Policy|\bCSP\b/i.test(text)) {
    const message = `the page's Content-Security-Policy forbids WebAssembly: add 'wasm-unsafe-eval' to its script-src (${text})`;
    return new Unsupported(message, { cause: error });
  }
  const message = `the package's WebAssembly cannot be loaded: ${text}; give it with the option "wasm", or import "windlass/inline"`;
  return new Unavailable(message, { cause: error });
}
