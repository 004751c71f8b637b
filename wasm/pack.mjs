// Puts the package together: `node wasm/pack.mjs STAGE PACKAGE`. STAGE has what tsc made of `js/`, and beside it the glue
// `core.js` and the names by which the WebAssembly knows it; PACKAGE has `dist/windlass.wasm`.

import { cpSync, mkdirSync, readFileSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";

import { build } from "esbuild";

const [stage, out] = process.argv.slice(2);
const here = import.meta.dirname ?? new URL(".", import.meta.url).pathname;
const dist = join(out, "dist");
const entry = (name) => join(stage, `${name}.js`);

const wasm = readFileSync(join(dist, "windlass.wasm"));
writeFileSync(entry("wasm-text"), `export default "${wasm.toString("base64")}";\n`);

// Short names between the two, where wasm-bindgen has long ones with hashes: a thirtieth of all there is to download.
const [names] = readFileSync(join(stage, "names.txt"), "utf8").split(/(?<=^})\n/m);
const { imports, exports } = JSON.parse(names);
const imported = new Map(imports.map(([, name, short]) => [name, short]));
const exported = new Map(exports);
const glue = readFileSync(entry("core"), "utf8")
  .replaceAll(imports[0][0], "a")
  .replace(/^( {8})(\w+)(?=: function)/gm, (_, indent, name) => indent + imported.get(name))
  .replace(/\bwasm\.(\w+)/g, (_, name) => `wasm.${exported.get(name)}`);
writeFileSync(entry("core"), glue);

const common = { bundle: true, minify: true, legalComments: "none", target: "es2022", external: ["*.wasm", "*.wasm?module"] };
await build({
  ...common,
  entryPoints: ["browser", "inline", "workerd", "edge-light"].map(entry),
  format: "esm",
  splitting: true,
  chunkNames: "part-[name]-[hash]",
  outdir: dist,
});
await build({ ...common, entryPoints: [entry("inline")], format: "cjs", platform: "node", outfile: join(dist, "cjs/inline.js") });

mkdirSync(join(dist, "cjs"), { recursive: true });
for (const file of readdirSync(stage).filter((file) => file.endsWith(".d.ts"))) {
  cpSync(join(stage, file), join(dist, file));
  cpSync(join(stage, file), join(dist, "cjs", file));
}
writeFileSync(join(dist, "cjs/package.json"), '{ "type": "commonjs" }\n');

// The version stands in one place.
const version = /\[workspace\.package\]\nversion = "(.*)"/.exec(readFileSync(join(here, "../Cargo.toml"), "utf8"))[1];
const { private: _, devDependencies: __, name, ...manifest } = JSON.parse(readFileSync(join(here, "package.json"), "utf8"));
writeFileSync(join(out, "package.json"), `${JSON.stringify({ name, version, ...manifest, files: ["dist", "LICENSE-*"] }, null, 2)}\n`);
for (const file of ["wasm/README.md", "LICENSE-APACHE", "LICENSE-MIT"]) {
  cpSync(join(here, "..", file), join(out, file.replace("wasm/", "")));
}
