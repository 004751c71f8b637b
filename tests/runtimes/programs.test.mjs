// Node, as ES module and as CommonJS, Deno and Bun.

import { after, before, test } from "node:test";

import { folder, node, passed, run, serve, tool } from "./kit.mjs";

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
      passed(where, JSON.parse(await run(command, [...args, server.url], { cwd: app.at })));
    });
  await Promise.all(Object.entries(PROGRAMS).map(one));
});
