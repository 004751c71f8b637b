// A browser, and pages of a server in it.

import assert from "node:assert/strict";

import { chromium } from "playwright-core";

export * from "./server.mjs";

const BROWSER = process.env.WINDLASS_CHROMIUM ?? "/usr/bin/chromium";

export async function browser() {
  return chromium.launch({ executablePath: BROWSER, args: process.getuid?.() === 0 ? ["--no-sandbox"] : [] });
}

/** A page of the server; `wrong` collects what must not happen in it: errors, and what its policy forbids. */
export async function open(browser, url, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1200, height: 800 }, ...options });
  const page = await context.newPage();
  const wrong = [];
  page.on("pageerror", (error) => wrong.push(String(error)));
  page.on("console", (message) => {
    // What a browser itself says of an answer of 401, or of a server that is not there.
    const is_network = message.text().startsWith("Failed to load resource");
    if (message.type() === "error" && !is_network) wrong.push(message.text());
  });
  page.on("dialog", (dialog) => {
    wrong.push(`a dialog: ${dialog.message()}`);
    dialog.dismiss();
  });
  await page.addInitScript(() => {
    globalThis.violations = [];
    addEventListener("securitypolicyviolation", (event) => globalThis.violations.push(`${event.violatedDirective} ${event.blockedURI}`));
  });
  await page.goto(url);
  const is_clean = async () => {
    assert.deepEqual(wrong, []);
    assert.deepEqual(await page.evaluate(() => globalThis.violations), []);
  };
  return { page, context, is_clean };
}
