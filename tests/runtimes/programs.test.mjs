// Node, as ES module and as CommonJS, Deno and Bun.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { setTimeout } from "node:timers/promises";

import { folder, node, passed, serve, start, tool } from "./kit.mjs";

const PROGRAMS = {
  ...Object.fromEntries(
    [20, 22, 24].flatMap((version) => [
      [`Node ${version}, ES module`, [node(version), "program.mjs"]],
      [`Node ${version}, CommonJS`, [node(version), "program.cjs"]],
    ]),
  ),
  // No more is allowed to it than to reach the network.
  Deno: [tool(".bin/deno"), "run", "--no-prompt", "--allow-net", "program.mjs"],
  Bun: [tool(".bin/bun"), "program.mjs"],
};

/** Less than the time for which a request may be held open after its locker was closed. */
const SOON = 10_000;

let app;
let server;
before(async () => {
  app = await folder();
  server = await serve();
});
after(async () => {
  await server?.end();
  await app?.end();
});

test("programs", { concurrency: 4 }, async (t) => {
  const one = ([where, [command, ...args]]) =>
    t.test(where, async () => {
      const program = start(command, [...args, server.url], { cwd: app.at });
      t.after(() => program.end());
      const [outcome] = await program.says(/^\{.*\}$/m);
      passed(where, JSON.parse(outcome));
      // All lockers are closed: nothing keeps a program alive, such as a request that is held open.
      const soon = new AbortController();
      const tooLate = setTimeout(SOON, "late", { signal: soon.signal }).catch(() => {});
      assert.equal(await Promise.race([program.over, tooLate]), 0, `${where} has not ended:\n${program.said()}`);
      soon.abort();
    });
  await Promise.all(Object.entries(PROGRAMS).map(one));
});
