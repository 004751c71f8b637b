// The life of a page, in Chromium: held or told lost, never silent.

import assert from "node:assert/strict";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { setTimeout as pause } from "node:timers/promises";

import { ask, id, release } from "../browser/kit.mjs";
import { chromium } from "./devtools.mjs";
import { folder, remove, run, serve, site, temporary, until } from "./kit.mjs";

/** A TTL that nothing here outlives: what is free before was released. */
const LONG_TTL = 600_000;

let app;
let pages;
let server;
let browser;
before(async () => {
  app = await folder();
  pages = await site(app.at);
  server = await serve({ args: ["--origin", pages.origin] });
  browser = await chromium();
});
after(async () => {
  await browser?.end();
  await server?.end();
  await pages?.end();
  await app?.end();
});

/** A page, and how it is asked. */
async function visit(t, from = server) {
  const tab = await browser.tab();
  t.after(() => tab.close().catch(() => {}));
  await tab.goto(pages.url("life.html", { server: from.url }));
  await until("the page is ready", () => tab.run("globalThis.ready === true"));
  const call = (name) => (...args) => tab.run(`${name}(${args.map((arg) => JSON.stringify(arg)).join(", ")})`);
  return { ...tab, hold: call("hold"), giveBack: call("giveBack"), standInLine: call("standInLine"), state: call("state"), lost: call("lost"), work: call("work"), kill: call("kill") };
}

/** The tokens of those who hold this lock, as the server says. */
async function holders(name) {
  const { locks } = await (await fetch(`${server.url}/v1/life/locks?prefix=${name}`)).json();
  return locks.flatMap((lock) => lock.holders.map((holder) => String(holder.fencing_token)));
}

/** Another program takes the lock, as soon as it can be had. */
async function other(name) {
  const claim = id();
  const { grant } = await ask(server.url, "life", "acquire", { name, claim, owner: "another", ttl_ms: LONG_TTL });
  return { token: String(grant.fencing_token), release: () => release(server.url, "life", { name, claim }) };
}

/** For so long, a page that says that it holds the lock held it a moment ago. */
async function agree(page, name, millis) {
  const end = performance.now() + millis;
  let looks = 0;
  while (performance.now() < end) {
    const seen = await holders(name);
    const { held, token } = await page.state();
    assert.ok(!held || seen.includes(token), `the page says it holds ${name} (${token}), the server says ${seen}`);
    looks++;
    await pause(50);
  }
  assert.ok(looks > 1);
}

test("a hidden tab, whose timers ring once a minute, keeps its lock, and is granted another", async (t) => {
  const page = await visit(t);
  const token = await page.hold("hidden", { ttl: 3_000 });
  const front = await visit(t);
  assert.equal(await page.run("document.visibilityState"), "hidden");
  // It takes a while until a hidden tab is slowed down.
  let rung = await page.run("rung");
  await until("timers are slowed down", async () => {
    await pause(2_000);
    const before = rung;
    rung = await page.run("rung");
    return rung === before;
  });
  await agree(page, "hidden", 10_000);
  assert.deepEqual(await page.state(), { held: true, token, aborted: false, reason: null });
  const holder = await other("wanted");
  const waiting = page.hold("wanted", { ttl: 3_000 });
  await holder.release();
  const granted = await waiting;
  assert.deepEqual(await holders("wanted"), [granted]);
  await front.close();
});

test("a tab that is frozen for longer than its TTL has lost its lock, and knows it", async (t) => {
  const page = await visit(t);
  const token = await page.hold("frozen", { ttl: 1_000 });
  await page.ask("Page.setWebLifecycleState", { state: "frozen" });
  const next = await other("frozen");
  assert.ok(BigInt(next.token) > BigInt(token));
  // The clock says it before any timer has rung.
  assert.equal((await page.state()).held, false);
  await page.ask("Page.setWebLifecycleState", { state: "active" });
  assert.equal(await page.lost(), "expired");
  await next.release();
  await page.hold("frozen", { ttl: 1_000 });
  await agree(page, "frozen", 1_500);
});

test("a tab that is frozen for less than its TTL goes on", async (t) => {
  const page = await visit(t);
  const token = await page.hold("nap", { ttl: 8_000 });
  await page.ask("Page.setWebLifecycleState", { state: "frozen" });
  await pause(1_500);
  await page.ask("Page.setWebLifecycleState", { state: "active" });
  await agree(page, "nap", 10_000);
  assert.deepEqual(await page.state(), { held: true, token, aborted: false, reason: null });
});

test("a page that goes into the back-forward cache releases at once, and comes back without its lock", async (t) => {
  const page = await visit(t);
  await page.hold("cached", { ttl: LONG_TTL });
  const { currentIndex, entries } = await page.ask("Page.getNavigationHistory");
  await page.goto(pages.url("bundle.html"));
  await until("the lock is free", async () => (await holders("cached")).length === 0);
  await page.ask("Page.navigateToHistoryEntry", { entryId: entries[currentIndex].id });
  await until("the page is back from the cache", () => page.run("globalThis.cameBack === true"));
  assert.deepEqual(await page.state().then(({ held, aborted, reason }) => ({ held, aborted, reason })), {
    held: false,
    aborted: true,
    reason: "session_ended",
  });
  const token = await page.hold("cached", { ttl: 3_000 });
  await agree(page, "cached", 5_000);
  assert.deepEqual(await page.state(), { held: true, token, aborted: false, reason: null });
});

test("a tab that is closed releases at once", async (t) => {
  const page = await visit(t);
  await page.hold("closed", { ttl: LONG_TTL });
  await page.close();
  await until("the lock is free", async () => (await holders("closed")).length === 0);
});

test("a page that navigates away while it waits leaves no place in the queue", async (t) => {
  const holder = await other("left");
  const page = await visit(t);
  await page.standInLine("left");
  const waiters = async () => {
    const { locks } = await (await fetch(`${server.url}/v1/life/locks?prefix=left`)).json();
    return locks.flatMap((lock) => lock.waiters).length;
  };
  await until("it waits", async () => (await waiters()) === 1);
  await page.close();
  await until("it waits no more", async () => (await waiters()) === 0);
  await holder.release();
});

const offline = (page, offline) =>
  page.ask("Network.emulateNetworkConditions", { offline, latency: 0, downloadThroughput: -1, uploadThroughput: -1 });

test("offline for longer than the TTL: the page is told before another gets the lock", async (t) => {
  const page = await visit(t);
  const token = await page.hold("offline", { ttl: 2_000 });
  await page.ask("Network.enable");
  await offline(page, true);
  const next = other("offline");
  await Promise.all([agree(page, "offline", 3_000), page.lost().then((reason) => assert.match(reason, /^(unreachable|expired)$/))]);
  assert.ok(BigInt((await next).token) > BigInt(token));
  await offline(page, false);
  await (await next).release();
  await page.hold("offline", { ttl: 3_000 });
  await agree(page, "offline", 5_000);
  assert.equal((await page.state()).held, true);
});

test("offline for less than the TTL: the lock is held on", async (t) => {
  const page = await visit(t);
  const token = await page.hold("tunnel", { ttl: 8_000 });
  await page.ask("Network.enable");
  await offline(page, true);
  await pause(3_000);
  await offline(page, false);
  await agree(page, "tunnel", 8_000);
  assert.deepEqual(await page.state(), { held: true, token, aborted: false, reason: null });
});

test("a worker that is terminated: its lock is free after the TTL", async (t) => {
  const page = await visit(t);
  const token = await page.work("worker", { ttl: 1_000 });
  assert.deepEqual(await holders("worker"), [token]);
  await page.kill();
  const next = await other("worker");
  assert.ok(BigInt(next.token) > BigInt(token));
});

/** More than a browser opens connections to a server over HTTP/1.1. */
const NAMES = Array.from({ length: 8 }, (_, i) => `crowd-${i}`);

/** A page that holds one lock and waits for more others than that, which another page holds. */
async function crowd(t, server) {
  const other = await visit(t, server);
  for (const name of NAMES) await other.hold(name, { ttl: 60_000 });
  const page = await visit(t, server);
  const token = await page.hold("few-connections", { ttl: 3_000 });
  for (const name of NAMES) await page.standInLine(name);
  return { other, page, token };
}

/** How many wait for each of them. */
async function waiting() {
  const { locks } = await (await fetch(`${server.url}/v1/life/locks?prefix=crowd-`)).json();
  return locks.map((lock) => lock.waiters.length);
}

/** What would wait for a request that is held open would wait for a minute. */
async function releasesAtOnce(page, name) {
  const begun = performance.now();
  await page.giveBack();
  assert.ok(performance.now() - begun < 10_000);
  assert.deepEqual(await holders(name), []);
}

test("over HTTP/1.1 a page that waits for many locks keeps its own, and releases at once", async (t) => {
  const { other, page, token } = await crowd(t, server);
  await until("it waits for all", async () => (await waiting()).join() === NAMES.map(() => 1).join());
  await agree(page, "few-connections", 5_000);
  assert.deepEqual(await page.state(), { held: true, token, aborted: false, reason: null });
  await releasesAtOnce(page, "few-connections");
  // What it waits for is granted, each as it comes free.
  await other.close();
  await until("all is granted", async () => (await waiting()).join() === NAMES.map(() => 0).join());
  assert.equal((await Promise.all(NAMES.map(holders))).flat().length, NAMES.length);
});

test("over HTTP/1.1 five pages do", async (t) => {
  const others = await Promise.all(NAMES.map(other));
  const pages = [];
  for (let i = 0; i < 5; i++) {
    const page = await visit(t);
    const token = await page.hold(`page-${i}`, { ttl: 3_000 });
    for (const name of NAMES) await page.standInLine(name);
    pages.push({ page, token });
  }
  await until("all wait for all", async () => (await waiting()).join() === NAMES.map(() => 5).join());
  for (const [i, { page, token }] of pages.entries()) {
    await agree(page, `page-${i}`, 2_000);
    assert.deepEqual(await page.state(), { held: true, token, aborted: false, reason: null });
  }
  for (const [i, { page, token }] of pages.entries()) {
    assert.deepEqual(await page.state(), { held: true, token, aborted: false, reason: null });
    await releasesAtOnce(page, `page-${i}`);
  }
  await Promise.all(others.map((claim) => claim.release()));
});

test("over HTTP/2 a page may wait for as many as it likes", async (t) => {
  const at = await temporary();
  t.after(() => remove(at));
  const [key, cert] = ["key.pem", "cert.pem"].map((file) => join(at, file));
  const kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1"];
  const name = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"];
  await run("openssl", ["req", "-x509", ...kind, ...name, "-keyout", key, "-out", cert]);
  const secure = await serve({ args: ["--origin", pages.origin, "--tls-cert", cert, "--tls-key", key] });
  t.after(() => secure.end());
  const { page } = await crowd(t, secure);
  await pause(5_000);
  const { held, aborted } = await page.state();
  assert.deepEqual({ held, aborted }, { held: true, aborted: false });
});
