// The npm package in Chromium, beside `navigator.locks` in the same page: writes its tables into docs/npm.md.

import { readFileSync, writeFileSync } from "node:fs";
import { cpus, loadavg } from "node:os";

import { chromium } from "../../tests/runtimes/devtools.mjs";
import { folder, serve, site, until } from "../../tests/runtimes/kit.mjs";

const PAGE = new URL("../../docs/npm.md", import.meta.url);
const [ROUNDS, PAIRS, TURNS] = [7, 300, 60];
/** How long each of two pages holds: long enough for the other one to be in line. */
const HOLD = 10;

const load = loadavg()[0];
const app = await folder(new URL("app/", import.meta.url).pathname);
// Only such a page is shown the clock in full.
const isolated = { "cross-origin-opener-policy": "same-origin", "cross-origin-embedder-policy": "require-corp" };
const pages = await site(app.at, isolated);
const server = await serve({ args: ["--origin", pages.origin] });
const browser = await chromium();

async function open(cacheDisabled) {
  const tab = await browser.tab(undefined, { newWindow: true });
  await tab.ask("Network.enable");
  await tab.ask("Network.setCacheDisabled", { cacheDisabled });
  await tab.goto(pages.url("page.html", { server: server.url }));
  await until("the page is ready", () => tab.run("globalThis.ready === true"));
  return tab;
}

const starts = [];
for (let round = 0; round <= ROUNDS; round++) {
  const tab = await open(true);
  const taken = await tab.run("startUp()");
  // The first is for the browser to warm up.
  if (round > 0) starts.push(taken);
  await tab.close();
}

const [one, two] = [await open(false), await open(false)];
for (const tab of [one, two]) await tab.run("startUp()");
const alone = { windlass: [], platform: [], bare: [] };
const handed = { windlass: [], platform: [] };
for (let round = 0; round <= ROUNDS; round++) {
  const took = {
    windlass: await one.run(`alone("windlass", ${PAIRS})`),
    platform: await one.run(`alone("platform", ${PAIRS})`),
    bare: await one.run(`bare(${PAIRS})`),
  };
  const passed = {};
  for (const manager of Object.keys(handed)) {
    const turns = await Promise.all([one, two].map((tab) => tab.run(`inTurn("${manager}", ${TURNS}, ${HOLD})`)));
    passed[manager] = handOvers(turns);
  }
  if (round === 0) continue;
  for (const what of Object.keys(alone)) alone[what].push(took[what]);
  for (const what of Object.keys(handed)) handed[what].push(passed[what]);
}
await browser.end();
await server.end();
await pages.end();
await app.end();

/** Times from a release to the grant in the other page. */
function handOvers(turns) {
  const all = turns.flatMap((turns, page) => turns.map((turn) => ({ ...turn, page })));
  all.sort((a, b) => a.granted - b.granted);
  return all.slice(1).flatMap((turn, i) => (turn.page === all[i].page ? [] : [turn.granted - all[i].released]));
}

const quantile = (values, share) => values.toSorted((a, b) => a - b)[Math.floor((values.length - 1) * share)];
const median = (values) => quantile(values, 0.5);
const figure = (millis) => (millis < 1 ? `${(millis * 1000).toPrecision(3)} µs` : `${millis.toPrecision(3)} ms`);

/** Of rounds: the median of their medians, its spread, and how often slower than the first. */
function row(what, rounds, first) {
  const medians = rounds.map(median);
  const spread = `${figure(Math.min(...medians))} .. ${figure(Math.max(...medians))}`;
  const ratio = (median(medians) / median(first.map(median))).toPrecision(3);
  return `| ${what} | ${figure(median(medians))} | ${spread} | ${figure(quantile(rounds.flat(), 0.99))} | ${ratio} x |`;
}

const started = (part) => {
  const values = starts.map((start) => start[part]);
  return `| ${figure(median(values))} | ${figure(Math.min(...values))} .. ${figure(Math.max(...values))} |`;
};
const machine = `${cpus().length} cores of ${cpus()[0].model.trim()}; the load was ${load.toFixed(1)} when it began`;
const text = `
Chromium and the server on one machine (${machine}), ${ROUNDS} rounds after one to warm up.
The platform's locks are of one browser and need no network; what a request of the same page takes at least is the second row.

| from the question to the grant, nobody else wants it | p50 | p50 of the rounds | p99 | p50 to the first row |
| --- | --: | --: | --: | --: |
${row("Windlass", alone.windlass, alone.windlass)}
${row("a request that the server refuses", alone.bare, alone.windlass)}
${row("`navigator.locks`", alone.platform, alone.windlass)}

| from the release to the grant in another page | p50 | p50 of the rounds | p99 | p50 to the first row |
| --- | --: | --: | --: | --: |
${row("Windlass", handed.windlass, handed.windlass)}
${row("`navigator.locks`", handed.platform, handed.windlass)}

| from nothing to the first lock, without a cache | median | spread |
| --- | --: | --: |
| the script is there | ${started("script").slice(2)}
| the WebAssembly is fetched and compiled | ${started("wasm").slice(2)}
| the first lock is granted | ${started("lock").slice(2)}
| all together | ${started("all").slice(2)}

`;
const begin = "<!-- speed: written by scripts/bench-browser -->\n";
const end = "<!-- /speed -->";
const page = readFileSync(PAGE, "utf8");
const [before, rest] = page.split(begin);
writeFileSync(PAGE, `${before}${begin}${text.trimStart()}${rest.slice(rest.indexOf(end))}`);
