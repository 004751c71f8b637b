// The examples: each compiles, is started as its README says, and takes its lock.

import assert from "node:assert/strict";
import { cp, mkdir, readFile, symlink } from "node:fs/promises";
import { createServer } from "node:net";
import { once } from "node:events";
import { dirname, join } from "node:path";
import { test } from "node:test";

import { chromium } from "./devtools.mjs";
import { node, remove, run, serve, start, tool, until, unpack, temporary } from "./kit.mjs";

const EXAMPLES = new URL("../../examples/", import.meta.url).pathname;

/** A copy of an example, with what its package.json asks for: the package as packed, the rest as this folder pins it. */
async function example(t, name) {
  const at = await temporary();
  t.after(() => remove(at));
  await cp(join(EXAMPLES, name), at, { recursive: true, filter: (path) => !path.includes("node_modules") });
  const { dependencies, devDependencies } = await manifest(at);
  const pinned = (await manifest(dirname(tool("")))).dependencies;
  const { windlass: _, ...others } = { ...dependencies, ...devDependencies };
  await mkdir(join(at, "node_modules/.bin"), { recursive: true });
  for (const [other, version] of Object.entries(others)) {
    assert.equal(version, pinned[other], `${other} in examples/${name} is of another version than in tests/runtimes`);
    const link = join(at, "node_modules", other);
    await mkdir(dirname(link), { recursive: true });
    await symlink(tool(other), link);
    for (const [command, path] of Object.entries((await manifest(link)).bin ?? {})) {
      await symlink(join(link, path), join(at, "node_modules/.bin", command));
    }
  }
  await unpack(join(at, "node_modules/windlass"));
  return at;
}

const manifest = async (at) => JSON.parse(await readFile(join(at, "package.json"), "utf8"));

/** `npm start`, with the newest Node. */
function started(t, at, args, env) {
  const program = start("npm", ["start", "--", ...args], { cwd: at, env: { HOME: at, PATH: `${dirname(node(24))}:${process.env.PATH}`, ...env } });
  t.after(() => program.end());
  return program;
}

async function server(t, args) {
  const server = await serve({ args });
  t.after(() => server.end());
  return server.url;
}

test("node", async (t) => {
  const at = await example(t, "node");
  const strict = ["--noEmit", "--allowJs", "--checkJs", "--strict", "--module", "nodenext", "--target", "es2022"];
  await run(tool(".bin/tsc"), [...strict, "--typeRoots", tool("@types"), "--types", "node", "index.js"], { cwd: at });
  const env = { WINDLASS_URL: `${await server(t)}/examples` };
  const first = started(t, at, [], env);
  await first.says(/working, with fencing token/);
  const second = started(t, at, [], env);
  await second.says(/waiting: held by/);
  assert.equal(await first.over, 0);
  assert.equal(await second.over, 0);
  assert.match(second.printed(), /working[^]*step 3 of 3\ndone/);
});

test("worker", async (t) => {
  const at = await example(t, "worker");
  await run(tool(".bin/tsc"), ["--project", at]);
  const where = `WINDLASS_URL:${await server(t)}/examples`;
  const program = started(t, at, ["--ip", "127.0.0.1", "--port", "0", "--inspector-port", "0", "--var", where], {
    WRANGLER_SEND_METRICS: "false",
    CI: "1",
  });
  const [, url] = await program.says(/Ready on (http:\/\/127\.0\.0\.1:\d+)/);
  const answers = await Promise.all([1, 2].map(async () => (await fetch(url)).json()));
  assert.match(answers.sort().join("\n"), /^done, with fencing token \d+\nnot done: worker does it$/);
});

test("react", async (t) => {
  const at = await example(t, "react");
  await run(tool(".bin/tsc"), ["--project", at]);
  const port = await freePort();
  const origin = `http://localhost:${port}`;
  const url = `${await server(t, ["--origin", origin])}/examples`;
  const program = started(t, at, ["--port", String(port), "--strictPort"], { VITE_WINDLASS_URL: url });
  await program.says(/Local:/);

  const visit = async (name) => {
    const browser = await chromium();
    t.after(() => browser.end());
    const tab = await browser.tab(`${origin}/?${new URLSearchParams({ name })}`);
    const text = (selector) => tab.run(`document.querySelector(${JSON.stringify(selector)})?.textContent ?? ""`);
    return {
      ...tab,
      reads: (wanted) => until(`${name} reads "${wanted}"`, async () => (await text("main")).includes(wanted)),
      press: (button) => tab.run(`[...document.querySelectorAll("button")].find((one) => one.textContent === ${JSON.stringify(button)}).click()`),
      note: () => tab.run('document.querySelector("textarea").value'),
      async write(text) {
        await tab.run('document.querySelector("textarea").select()');
        await tab.ask("Input.insertText", { text });
      },
    };
  };
  const [ann, bob] = [await visit("Ann"), await visit("Bob")];
  await bob.reads("Nobody is editing");
  await ann.press("Edit");
  await ann.reads("You are editing");
  await bob.reads("Ann is editing");
  await bob.press("Edit");
  await bob.reads("you are in line");
  await ann.reads("In line: Bob");
  await ann.write("Cheese");
  await ann.press("Save");
  await bob.reads("You are editing");
  assert.equal(await bob.note(), "Cheese");
  await ann.reads("Bob is editing");
  // A tab that is closed gives way at once.
  await ann.press("Edit");
  await ann.reads("you are in line");
  await bob.close();
  await ann.reads("You are editing");
});

async function freePort() {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address();
  server.close();
  await once(server, "close");
  return port;
}
