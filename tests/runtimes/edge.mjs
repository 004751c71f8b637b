// Hosts of edge functions: each takes `app/edge.mjs` and gives `ask(path, query)`, which answers as the function did.

import assert from "node:assert/strict";
import { readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";

import { EdgeRuntime } from "edge-runtime";
import { build } from "esbuild";

import { node, start, tool } from "./kit.mjs";

const COMPATIBLE = "2026-11-01";

/** The bare runtime of Cloudflare's workers, which is told each module. */
export async function workerd(at) {
  const dist = "node_modules/windlass/dist";
  const ours = (await readdir(join(at, dist))).filter((file) => file === "workerd.js" || file.startsWith("part-"));
  const modules = [
    ["edge.mjs", 'esModule = embed "edge.mjs"'],
    ["suite.mjs", 'esModule = embed "suite.mjs"'],
    // What a bundler makes of the name of the package.
    ["windlass", `esModule = "export * from './${dist}/workerd.js';"`],
    ...ours.map((file) => [`${dist}/${file}`, `esModule = embed "${dist}/${file}"`]),
    [`${dist}/windlass.wasm`, `wasm = embed "${dist}/windlass.wasm"`],
  ];
  const config = `using Workerd = import "/workerd/workerd.capnp";
const config :Workerd.Config = (
  services = [
    (name = "edge", worker = (
      modules = [${modules.map(([name, content]) => `(name = "${name}", ${content})`).join(",\n")}],
      compatibilityDate = "${COMPATIBLE}",
    )),
    (name = "internet", network = (allow = ["public", "private"])),
  ],
  sockets = [(name = "http", address = "127.0.0.1:0", http = (), service = "edge")],
);
`;
  await writeFile(join(at, "workerd.capnp"), config);
  const program = start(tool(".bin/workerd"), ["serve", "--control-fd=3", "workerd.capnp"], { cwd: at });
  const [, port] = await program.says(/"event":"listen","socket":"http","port":(\d+)/);
  return over(program, `http://127.0.0.1:${port}`);
}

/** Cloudflare's own tool, which finds the package's WebAssembly by its `exports`. */
export async function wrangler(at) {
  const args = ["dev", "edge.mjs", "--ip", "127.0.0.1", "--port", "0", "--inspector-port", "0", "--compatibility-date", COMPATIBLE];
  const env = { WRANGLER_SEND_METRICS: "false", CI: "1", HOME: at, XDG_CONFIG_HOME: at, FORCE_COLOR: "0" };
  const program = start(node(24), [tool("wrangler/bin/wrangler.js"), ...args], { cwd: at, env });
  const [, url] = await program.says(/Ready on (http:\/\/127\.0\.0\.1:\d+)/);
  return over(program, url);
}

/** Vercel's, with what its bundler does for `.wasm?module`: the module comes from outside the function's realm. */
export async function edgeRuntime(at) {
  const name = "WINDLASS_MODULE";
  const wasm = {
    name: "wasm-module",
    setup(build) {
      build.onResolve({ filter: /\.wasm\?module$/ }, ({ path }) => ({ path, namespace: "wasm" }));
      build.onLoad({ filter: /.*/, namespace: "wasm" }, () => ({ contents: `export default globalThis.${name}` }));
    },
  };
  const { outputFiles: [bundle] } = await build({
    absWorkingDir: at,
    entryPoints: ["edge-light.mjs"],
    bundle: true,
    write: false,
    format: "iife",
    conditions: ["edge-light", "worker"],
    plugins: [wasm],
  });
  const module = new WebAssembly.Module(await readFile(join(at, "node_modules/windlass/dist/windlass.wasm")));
  const runtime = new EdgeRuntime({
    extend: (context) => Object.assign(context, { [name]: module }),
    initialCode: bundle.text,
  });
  const ask = async (path, query) => answer(await runtime.dispatchFetch(`http://edge/${path}?${new URLSearchParams(query)}`));
  return { ask, end: async () => {} };
}

function over(program, url) {
  const ask = async (path, query) => answer(await fetch(`${url}/${path}?${new URLSearchParams(query)}`), program);
  return { ask, end: program.end };
}

async function answer(response, program) {
  const body = await response.text();
  assert.equal(response.status, 200, `${body}\n${program?.said() ?? ""}`);
  return JSON.parse(body);
}
