// The package as it is packed: what it exports, its types, its forms.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { test } from "node:test";

import * as esm from "windlass";

import { program, server, space } from "./kit.mjs";

const place = server();
const tool = (name) => new URL(`../../wasm/node_modules/.bin/${name}`, import.meta.url).pathname;
const TARBALL = process.env.WINDLASS_TARBALL;
const require = createRequire(import.meta.url);

async function passes(name, ...args) {
  const { status, out } = await program(tool(name), args, { NO_COLOR: "1" }).ended;
  assert.equal(status, 0, out);
}

test("publint has nothing to say", () => passes("publint", TARBALL, "--strict"));

test("the types are right, for import and for require", () =>
  passes("attw", TARBALL, "--profile", "node16", "--exclude-entrypoints", "windlass.wasm", "inline"));

test("import and require give the same names", async (t) => {
  const cjs = require("windlass");
  assert.deepEqual(Object.keys(cjs).sort(), Object.keys(esm).sort());
  const locks = await cjs.connect(space(t, place).url);
  assert.equal(await locks.request("a", (lock) => lock.name), "a");
  await locks.close();
});

test("importing it does nothing: no WebAssembly, no timer, no listener", async () => {
  const script = `
    WebAssembly.Module = WebAssembly.instantiate = () => { throw new Error("loaded") };
    globalThis.setTimeout = globalThis.fetch = globalThis.addEventListener = () => { throw new Error("called") };
    await import("windlass");
  `;
  const { status, out } = await program(process.execPath, ["--input-type=module", "-e", script]).ended;
  assert.equal(status, 0, out);
});

test("programs in TypeScript compile under the strictest options, as modules and as CommonJS", () =>
  passes("tsc", "--project", new URL("types", import.meta.url).pathname));

test("its version is the project's, and it has its licences", async () => {
  const manifest = require("windlass/package.json");
  const root = await readFile(new URL("../../Cargo.toml", import.meta.url), "utf8");
  assert.equal(manifest.version, /\[workspace\.package\]\nversion = "(.*)"/.exec(root)[1]);
  const listed = await program("tar", ["-tzf", TARBALL]).ended;
  for (const file of ["README.md", "LICENSE-MIT", "LICENSE-APACHE"]) assert.ok(listed.out.includes(`package/${file}\n`), file);
});
