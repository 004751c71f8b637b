// Edge functions: Cloudflare's workers, bare and by wrangler, and Vercel's Edge Runtime.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";

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

/** Who holds this lock, as the server says. */
async function holders(name) {
  const { locks } = await (await fetch(`${server.url}/v1/edge/locks?prefix=${name}`)).json();
  return locks.flatMap((lock) => lock.holders);
}

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
  });
}
