// Edge functions: Cloudflare's workers, bare and by wrangler, and Vercel's Edge Runtime.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { setTimeout as pause } from "node:timers/promises";

import { hold, release } from "../browser/server.mjs";
import { edgeRuntime, workerd, wrangler } from "./edge.mjs";
import { folder, passed, serve } from "./kit.mjs";

const HOSTS = {
  workerd: { host: workerd, endsRequests: true },
  "wrangler dev": { host: wrangler, endsRequests: true },
  // Here it is a part of a process that lives on, and so do the renewals of a function that has answered.
  "Vercel's Edge Runtime": { host: edgeRuntime, endsRequests: false },
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

/** Who holds this lock and who waits for it, as the server says. */
async function status(name) {
  const { locks } = await (await fetch(`${server.url}/v1/edge/locks?prefix=${encodeURIComponent(name)}`)).json();
  const owners = (of) => locks.flatMap((lock) => lock[of]).map(({ owner }) => owner);
  return { holders: owners("holders"), waiters: owners("waiters") };
}

const holders = async (name) => (await status(name)).holders;

/** Longer than the server keeps a place that is not to be kept. */
const AWAY = 3_000;

for (const [where, { host, endsRequests }] of Object.entries(HOSTS)) {
  test(where, async (t) => {
    const edge = await host(app.at);
    t.after(() => edge.end());
    const ask = (path, query) => edge.ask(path, { server: server.url, ...query });

    await t.test("the suite, in two requests at once and in one after them", async () => {
      const both = await Promise.all([ask("suite"), ask("suite")]);
      for (const outcome of [...both, await ask("suite")]) passed(where, outcome);
    });

    if (endsRequests) {
      await t.test("a function that ends while it holds: the lock is free after its TTL, and does not count as held", async () => {
        const name = `hold ${where}`;
        assert.deepEqual(await ask("hold", { name }), { held: true });
        // Another request of the same function waits for it.
        const { ticket } = await ask("detach", { name });
        assert.ok(ticket);
        assert.deepEqual(await ask("look"), { held: false });
      });
    }

    await t.test("a lock taken in one request is taken up in the next", async () => {
      const name = `ticket ${where}`;
      const { ticket } = await ask("detach", { name });
      assert.equal((await holders(name)).length, 1);
      assert.deepEqual(await ask("attach", { ticket }), { held: true });
      assert.deepEqual(await holders(name), []);
    });

    await t.test("a place in the queue taken in one request is taken up in the next", async () => {
      const name = `queue ${where}`;
      const held = await hold(server.url, "edge", name, "holder");
      const first = await ask("queue", { name, owner: "first", timeout: 2_000 });
      assert.equal(first.place, 1);
      const second = await ask("queue", { name, owner: "second", timeout: 2_000 });
      assert.equal(second.place, 2);
      await pause(AWAY);
      assert.deepEqual(await status(name), { holders: ["holder"], waiters: ["first", "second"] });
      // The second one is back before the first.
      const turns = [ask("queue", { name, owner: "second", timeout: 20_000, ticket: second.ticket })];
      await release(server.url, "edge", held);
      await pause(AWAY);
      assert.deepEqual(await status(name), { holders: ["first"], waiters: ["second"] });
      turns.unshift(ask("queue", { name, owner: "first", timeout: 20_000, ticket: first.ticket }));
      const tokens = (await Promise.all(turns)).map(({ token }) => BigInt(token));
      assert.ok(tokens[0] < tokens[1], String(tokens));
      assert.deepEqual(await status(name), { holders: [], waiters: [] });
    });
  });
}
