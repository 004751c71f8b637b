// Seeing locks.

import assert from "node:assert/strict";
import { test } from "node:test";

import { failure, server, space, until, waiters } from "./kit.mjs";

const place = server();

test("query has the platform's form, with who and for how long", async (t) => {
  const { locker } = space(t, place);
  const [ours, theirs] = [await locker({ owner: "ann" }), await locker({ owner: "bob" })];
  const lock = await ours.acquire("b", { metadata: { why: "because" } });
  await ours.acquire("a", { mode: "shared" });
  const waiting = theirs.acquire("b");
  const { held, pending } = await waiters(theirs, "b", 1).then(() => ours.query());
  const brief = ({ name, mode, clientId }) => [name, mode, clientId];
  assert.deepEqual(held.map(brief), [["a", "shared", "ann"], ["b", "exclusive", "ann"]]);
  assert.deepEqual(pending.map(brief), [["b", "exclusive", "bob"]]);
  assert.equal(held[1].fencingToken, lock.fencingToken);
  assert.deepEqual(held[1].metadata, { why: "because" });
  assert.ok(held[1].heldFor >= 0 && pending[0].waitedFor >= 0);
  assert.deepEqual((await ours.list("b")).map(({ name }) => name), ["b"]);
  await lock.release();
  await waiting;
});

test("watch gives what is there, and then what changes", async (t) => {
  const { locker } = space(t, place);
  const [ours, theirs] = [await locker(), await locker({ owner: "bob" })];
  const held = await theirs.acquire("job/1");
  await theirs.acquire("other");
  const seen = [];
  const watching = (async () => {
    for await (const { name, holders } of ours.watch("job/")) {
      seen.push([name, holders.map(({ owner }) => owner)]);
      if (seen.length === 3) break;
    }
  })();
  await until("it is seen", () => seen.length === 1);
  await held.release();
  await until("it is seen to be free", () => seen.length === 2);
  await theirs.acquire("job/2");
  await watching;
  assert.deepEqual(seen, [["job/1", ["bob"]], ["job/1", []], ["job/2", ["bob"]]]);
});

test("watch ends by its signal and by its return, also while it waits", async (t) => {
  const locks = await space(t, place).locker();
  const control = new AbortController();
  const changes = locks.watch("", { signal: control.signal });
  const next = changes.next();
  const reason = new Error("enough");
  setImmediate(() => control.abort(reason));
  assert.equal(await failure(next), reason);

  const others = locks.watch();
  const waiting = others.next();
  await others.return();
  assert.deepEqual(await waiting, { done: true, value: undefined });
  assert.throws(() => locks.watch("", { signal: AbortSignal.abort(reason) }), reason);
});
