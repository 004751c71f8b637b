// Counts up in the same file, one step a turn, from a page in a browser: page.mjs NAME DIRECTORY SECONDS. The page takes the
// lock and has each step done by this program, as it would by a server of its own.

import { appendFileSync, readFileSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

import { chromium } from "../tests/browser/node_modules/playwright-core/index.mjs";

const [name, directory, seconds] = process.argv.slice(2);
const { WINDLASS_URL, DEMO_PACKAGE, DEMO_CHROMIUM, DEMO_ORIGIN } = process.env;
const now = () => Date.now() / 1000;

const types = { js: "text/javascript", wasm: "application/wasm", html: "text/html" };
const pages = createServer((request, response) => {
  const path = request.url === "/" ? "/page.html" : request.url;
  response.setHeader("content-type", types[path.split(".").at(-1)] ?? "text/plain");
  try {
    response.end(path === "/page.html" ? "<!doctype html><title>Demo</title>" : readFileSync(join(DEMO_PACKAGE, path)));
  } catch {
    response.writeHead(404).end();
  }
});
await new Promise((ready) => pages.listen(new URL(DEMO_ORIGIN).port, "127.0.0.1", ready));

async function step(asked, got) {
  const counter = join(directory, "counter");
  const value = Number(readFileSync(counter, "utf8"));
  await sleep(2);
  writeFileSync(counter, String(value + 1));
  appendFileSync(join(directory, "turns"), `${name} ${asked} ${got} ${now()}\n`);
}

const browser = await chromium.launch({
  executablePath: DEMO_CHROMIUM,
  args: ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"],
});
const page = await browser.newPage();
await page.exposeFunction("step", step);
await page.goto(DEMO_ORIGIN);
console.log("ready"); // the others begin now: a browser takes its time to start
const end = now() + Number(seconds);
await page.evaluate(
  async ({ url, end }) => {
    const { connect } = await import("/dist/browser.js");
    const locks = await connect(url);
    while (Date.now() / 1000 < end) {
      const asked = Date.now() / 1000;
      await locks.request("windlass-demo", () => step(asked, Date.now() / 1000));
    }
    await locks.close();
  },
  { url: WINDLASS_URL, end },
);
await browser.close();
pages.close();
