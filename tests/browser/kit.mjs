// A server, clients of it by its own protocol, and a browser.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { createInterface } from "node:readline";

import { chromium } from "playwright-core";

const WINDLASS = process.env.WINDLASS ?? new URL("../../target/debug/windlass", import.meta.url).pathname;
const BROWSER = process.env.WINDLASS_CHROMIUM ?? "/usr/bin/chromium";

/** Starts `windlass serve`, at this address or a free one. */
export async function serve({ listen = "127.0.0.1:0", args = [] } = {}) {
  const child = spawn(WINDLASS, ["serve", "--ephemeral", "--listen", listen, ...args], {
    stdio: ["ignore", "ignore", "pipe"],
  });
  child.on("error", (error) => assert.fail(`${WINDLASS} cannot be started: ${error.message}`));
  const said = [];
  for await (const line of createInterface({ input: child.stderr })) {
    said.push(line);
    const url = line.match(/(https?:\/\/[^/]+)\/NAMESPACE/)?.[1];
    if (url) {
      child.stderr.resume();
      const end = async () => {
        child.kill("SIGKILL");
        if (child.exitCode === null && child.signalCode === null) await once(child, "exit");
      };
      return { url, listen: new URL(url).host, end };
    }
  }
  return assert.fail(`the server did not start:\n${said.join("\n")}`);
}

export const id = () => randomBytes(16).toString("hex");

/** Asks the server as a program would. */
export async function ask(url, namespace, verb, question, token) {
  const headers = token ? { authorization: `Bearer ${token}` } : {};
  const response = await fetch(`${url}/v1/${namespace}/${verb}`, { method: "POST", headers, body: JSON.stringify(question) });
  const answer = await response.json();
  assert.ok(response.ok, JSON.stringify(answer));
  return answer;
}

/** Takes a lock, for long. */
export async function hold(url, namespace, name, owner, more = {}) {
  const claim = id();
  const question = { name, claim, owner, ttl_ms: 600_000, ...more };
  const answer = await ask(url, namespace, "acquire", question, more.token);
  assert.equal(answer.outcome, "granted");
  return { name, claim };
}

/** Stands in line. */
export function wait(url, namespace, name, owner, more = {}) {
  const claim = id();
  const granted = ask(url, namespace, "acquire", { name, claim, owner, ttl_ms: 600_000, ...more });
  // The server may be ended under it.
  granted.catch(() => {});
  return { name, claim, granted };
}

export const release = (url, namespace, ...claims) =>
  ask(url, namespace, "release", { claims: claims.map(({ name, claim }) => ({ name, claim })) });

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
