// What a host downloads or reads of the package, as a table in docs/npm.md: `node wasm/sizes.mjs PACKAGE`.

import { readFileSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { brotliCompressSync, gzipSync } from "node:zlib";

const PAGE = new URL("../docs/npm.md", import.meta.url);
const dist = join(process.argv[2], "dist");

/** An entry with what it imports at once. */
function script(name) {
  const text = readFileSync(join(dist, name), "utf8");
  const parts = [...text.matchAll(/from"(\.\/part-[^"]+)"/g)].map(([, part]) => readFileSync(join(dist, part)));
  return Buffer.concat([Buffer.from(text), ...parts]);
}

const wasm = readFileSync(join(dist, "windlass.wasm"));
const base64 = readdirSync(dist).find((file) => file.startsWith("part-wasm-text"));
const rows = [
  ["`windlass.wasm`", [wasm]],
  ["the script of a browser", [script("browser.js")]],
  ["**a browser, in all**", [wasm, script("browser.js")]],
  ["Node, Deno, Bun, in all", [script("inline.js"), readFileSync(join(dist, base64))]],
];
const kb = (bytes) => (bytes / 1000).toFixed(1);
const sum = (files, size) => kb(files.reduce((bytes, file) => bytes + size(file), 0));
const table = rows.map(
  ([what, files]) =>
    `| ${what} | ${sum(files, (file) => file.length)} | ${sum(files, (file) => gzipSync(file, { level: 9 }).length)} | ${sum(files, (file) => brotliCompressSync(file).length)} |`,
);
const begin = "<!-- sizes: written by scripts/npm --sizes -->\n";
const end = "<!-- /sizes -->";
const page = readFileSync(PAGE, "utf8");
const [before, rest] = page.split(begin);
const after = rest.slice(rest.indexOf(end));
writeFileSync(PAGE, `${before}${begin}| kB | raw | gzip | brotli |\n| --- | --- | --- | --- |\n${table.join("\n")}\n${after}`);
