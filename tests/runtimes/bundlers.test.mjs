// Bundlers with what they do unless told otherwise, and the browser, or the Node, that runs what they made.

import assert from "node:assert/strict";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { promisify } from "node:util";

import { build as esbuild } from "esbuild";
import { build as viteBuild, createServer as viteServer } from "vite";
import webpack from "webpack";

import { open } from "./browsers.mjs";
import { folder, node, passed, run, serve, site } from "./kit.mjs";

let app;
let pages;
before(async () => {
  app = await folder();
  pages = await site(app.at);
});
after(async () => {
  await pages?.end();
  await app?.end();
});

/** Opens the page in Chromium, and looks at what it tells. */
async function visit(t, url, bundler, looks) {
  const server = await serve({ args: ["--origin", new URL(url).origin] });
  t.after(() => server.end());
  const query = new URLSearchParams({ browser: bundler, server: server.url });
  const program = await open("Chromium", `${url}?${query}`);
  t.after(() => program.end());
  for (const [where, look] of Object.entries(looks)) {
    look(`${bundler}, ${where}`, await pages.outcome(`${bundler}, ${where}`, program));
  }
}

const SUITE = { page: passed, "module worker": passed };
const ONE = { "one name": (_, outcome) => assert.deepEqual(outcome, { held: true }) };

const page = (script) => `<!doctype html><meta charset="utf-8"><script type="module" src="./${script}"></script>`;

test("vite build", async (t) => {
  await writeFile(join(app.at, "few.html"), page("few.mjs"));
  await viteBuild({
    root: app.at,
    base: "./",
    logLevel: "error",
    worker: { format: "es" },
    build: { outDir: "vite", emptyOutDir: true, rollupOptions: { input: ["bundle.html", "few.html"].map((file) => join(app.at, file)) } },
  });
  await visit(t, `${pages.origin}/vite/bundle.html`, "vite build", SUITE);
  await visit(t, `${pages.origin}/vite/few.html`, "vite build", ONE);
});

test("vite's own server", async (t) => {
  const vite = await viteServer({
    root: app.at,
    logLevel: "error",
    server: { host: "127.0.0.1", port: 0, proxy: { "/report": pages.origin } },
  });
  await vite.listen();
  t.after(() => vite.close());
  await visit(t, `http://127.0.0.1:${vite.httpServer.address().port}/bundle.html`, "vite dev", SUITE);
});

test("webpack", async (t) => {
  const entry = { bundle: "./bundle.mjs", few: "./few.mjs" };
  const output = { path: join(app.at, "webpack"), filename: "[name].js" };
  const stats = await promisify(webpack)({ context: app.at, mode: "production", performance: { hints: false }, entry, output });
  assert.ok(!stats.hasErrors() && !stats.hasWarnings(), stats.toString());
  for (const name of Object.keys(entry)) await writeFile(join(output.path, `${name}.html`), page(`${name}.js`));
  await visit(t, `${pages.origin}/webpack/bundle.html`, "webpack", SUITE);
  await visit(t, `${pages.origin}/webpack/few.html`, "webpack", ONE);
});

test("esbuild for a page", async (t) => {
  const outfile = join(app.at, "esbuild/bundle.js");
  await esbuild({ absWorkingDir: app.at, entryPoints: ["bundle-inline.mjs"], bundle: true, minify: true, format: "esm", outfile });
  await writeFile(join(app.at, "esbuild/bundle.html"), page("bundle.js"));
  await visit(t, `${pages.origin}/esbuild/bundle.html`, "esbuild", { page: passed });
});

for (const [format, ending] of [
  ["esm", "mjs"],
  ["cjs", "cjs"],
]) {
  test(`esbuild for Node, ${format}`, async (t) => {
    const server = await serve();
    t.after(() => server.end());
    const outfile = join(app.at, `esbuild/program.${ending}`);
    await esbuild({ absWorkingDir: app.at, entryPoints: [`program.${ending}`], bundle: true, platform: "node", format, outfile });
    // From elsewhere: nothing of the package is beside it.
    passed(`esbuild for Node, ${format}`, JSON.parse(await run(node(20), [outfile, server.url], { cwd: "/" })));
  });
}
