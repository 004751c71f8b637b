// Pages and workers without a bundler, and under a Content-Security-Policy, in each browser.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import { browsers, open } from "./browsers.mjs";
import { folder, passed, serve, site } from "./kit.mjs";

const PLACES = ["page", "module worker", "shared worker", "service worker"];

let app;
let pages;
let server;
before(async () => {
  app = await folder();
  pages = await site(app.at);
  server = await serve({ args: ["--origin", pages.origin] });
});
after(async () => {
  await server?.end();
  await pages?.end();
  await app?.end();
});

/** The policy of a page that may talk to its own site and to the lock server. */
const policy = (scripts) => `default-src 'none'; script-src ${scripts}; connect-src 'self' ${server.url}`;

for (const browser of browsers) {
  test(browser, async (t) => {
    const visit = async (page, query) => {
      const program = await open(browser, pages.url(page, { browser, server: server.url, ...query }));
      t.after(() => program.end());
      return (where) => pages.outcome(`${browser}, ${where}`, program);
    };
    const outcome = await visit("page.html");
    for (const where of PLACES) await t.test(where, async () => passed(`${browser}, ${where}`, await outcome(where)));

    await t.test("a policy that allows WebAssembly alone", async () => {
      const where = "strict page";
      const outcome = await visit("strict.html", { where, policy: policy("'self' 'wasm-unsafe-eval'") });
      passed(`${browser}, ${where}`, await outcome(where));
    });

    await t.test("a policy that forbids WebAssembly is told of", async () => {
      const where = "forbidding page";
      const outcome = await visit("strict.html", { where, policy: policy("'self'") });
      const { connect } = await outcome(where);
      assert.match(connect ?? "connected", /Unsupported.*'wasm-unsafe-eval'/);
    });
  });
}
