// A folder with the packed package in it, programs that are run in it, and a site whose pages tell how it went.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { cp, mkdir, mkdtemp, readFile, rm } from "node:fs/promises";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { extname, join, normalize } from "node:path";
import { setTimeout as pause } from "node:timers/promises";
import { stripVTControlCharacters } from "node:util";

import { steps } from "./app/suite.mjs";

export { serve } from "../browser/kit.mjs";

/** The longest that anything here takes, on the busiest machine. */
export const LONG = 120_000;
/** The longest that a change takes to be seen. */
const SOON = 20_000;

const here = new URL(".", import.meta.url).pathname;
const TARBALL = process.env.WINDLASS_TARBALL;

/** A program of a package that this folder's package.json pins. */
export const tool = (path) => join(here, "node_modules", path);
export const node = (version) => tool(`node-${version}/bin/node`);

/** A new folder with what is in `app/`, or another folder, and the package as packed. */
export async function folder(from = join(here, "app")) {
  assert.ok(TARBALL, "WINDLASS_TARBALL says where the packed package is: scripts/npm makes it");
  const at = await temporary();
  await cp(from, at, { recursive: true, filter: (path) => !path.includes("node_modules") });
  await run("npm", ["install", "--no-audit", "--no-fund", "--silent", "--offline", TARBALL], { cwd: at });
  return { at, end: () => remove(at) };
}

/** What npm does with a package that depends on nothing. */
export async function unpack(into) {
  await mkdir(into, { recursive: true });
  await run("tar", ["-xzf", TARBALL, "--strip-components=1", "-C", into]);
}

/** Looks until it is so. */
export async function until(what, so) {
  const end = performance.now() + SOON;
  while (!(await so())) {
    assert.ok(performance.now() < end, `never: ${what}`);
    await pause(50);
  }
}

export const temporary = () => mkdtemp(join(tmpdir(), "windlass-runtimes-"));
export const remove = (at) => rm(at, { recursive: true, force: true, maxRetries: 5 });

/** Runs a program to its end: what it printed. */
export async function run(command, args, options = {}) {
  const program = start(command, args, options);
  const tooLong = setTimeout(program.end, LONG);
  const code = await program.over;
  clearTimeout(tooLong);
  assert.equal(code, 0, `${command} ${args.join(" ")}\nended with ${code} and said:\n${program.said()}`);
  return program.printed();
}

/** Starts a program, in a process group of its own, so that its end ends all of it. */
export function start(command, args, { cwd, env } = {}) {
  const child = spawn(command, args, { cwd, env: { ...process.env, ...env }, detached: true, stdio: ["ignore", "pipe", "pipe", "pipe"] });
  const texts = { out: "", all: "", control: "" };
  const heard = new Set();
  const listen = (stream, ...names) =>
    stream.on("data", (data) => {
      for (const name of names) texts[name] += data;
      for (const look of heard) look();
    });
  listen(child.stdout, "out", "all");
  listen(child.stderr, "all");
  listen(child.stdio[3], "control", "all");
  const over = new Promise((resolve) => {
    child.on("error", (error) => {
      texts.all += `${error}`;
      resolve(error.code);
    });
    child.on("close", (code, signal) => resolve(code ?? signal));
  });
  let isOver = false;
  void over.then(() => {
    isOver = true;
    for (const look of heard) look();
  });
  return {
    over,
    printed: () => texts.out,
    said: () => texts.all.slice(-4_000),
    /** Once it has said so: what the pattern found. */
    async says(pattern) {
      let look;
      const found = new Promise((resolve, reject) => {
        const broken = (why) => reject(new Error(`${command} ${why} before it said ${pattern}:\n${texts.all.slice(-4_000)}`));
        const tooLong = setTimeout(broken, LONG, `took over ${LONG / 1_000} s`);
        look = () => {
          // Where a variable CI is set, some tools write in colours.
          const match = stripVTControlCharacters(texts.all).match(pattern);
          if (match === null && !isOver) return;
          clearTimeout(tooLong);
          if (match === null) broken("ended");
          else resolve(match);
        };
        heard.add(look);
        look();
      });
      return found.finally(() => heard.delete(look));
    },
    async end() {
      if (!isOver && child.pid !== undefined) process.kill(-child.pid, "SIGKILL");
      await over;
    },
  };
}

/** That the suite passed: a failure says in which runtime and at which step. */
export function passed(where, outcome) {
  for (const step of steps()) {
    const error = step in outcome ? outcome[step] : "was not reached";
    if (error !== null) assert.fail(`${where}: step "${step}": ${error}`);
  }
}

const TYPES = { ".html": "text/html", ".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm", ".css": "text/css" };

/** Serves a folder to browsers, on a free port, and takes their reports. */
export async function site(at, more = {}) {
  const reports = new Map();
  const report = (where) => {
    if (!reports.has(where)) {
      let tell;
      const told = new Promise((resolve) => (tell = resolve));
      reports.set(where, { told, tell });
    }
    return reports.get(where);
  };
  const server = createServer(async (request, response) => {
    const { pathname, searchParams } = new URL(request.url, "http://site");
    if (pathname === "/report") {
      const { where, outcome } = JSON.parse(Buffer.concat(await request.toArray()));
      report(`${new URL(request.headers.referer).searchParams.get("browser")}, ${where}`).tell(outcome);
      response.end();
      return;
    }
    const file = join(at, normalize(pathname));
    const body = await readFile(file).catch(() => undefined);
    const headers = { "content-type": TYPES[extname(file)] ?? "text/plain", ...more };
    const policy = searchParams.get("policy");
    if (policy !== null) headers["content-security-policy"] = policy;
    response.writeHead(body === undefined ? 404 : 200, headers).end(body);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const origin = `http://127.0.0.1:${server.address().port}`;
  return {
    origin,
    url: (page, query) => `${origin}/${page}?${new URLSearchParams(query)}`,
    /** What is told from there, unless the program ends before. */
    async outcome(where, program) {
      let tooLong;
      const late = new Promise((_, reject) => {
        const broken = (why) => reject(new Error(`${where}: ${why}:\n${program?.said() ?? ""}`));
        tooLong = setTimeout(broken, LONG, `no word for ${LONG / 1_000} s`);
        void program?.over.then((code) => broken(`the browser ended with ${code}`));
      });
      return Promise.race([report(where).told, late]).finally(() => clearTimeout(tooLong));
    },
    async end() {
      server.closeAllConnections();
      server.close();
    },
  };
}
