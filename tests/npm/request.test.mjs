// `request` and `query` by the rules of navigator.locks.

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { test } from "node:test";

import { failure, gate, server, space, waiters, WINDLASS } from "./kit.mjs";

const place = server();

/** The DOMException of this name, of whichever realm. */
async function dom(promise, name) {
  const error = await failure(promise);
  assert.ok(error instanceof DOMException, String(error));
  assert.equal(error.name, name);
  return error;
}

test("the callback has the lock for as long as what it returns is not settled, and its result is the request's", async (t) => {
  const locks = await space(t, place).locker();
  const held = await locks.request("a", async (lock) => {
    assert.equal(lock.name, "a");
    assert.equal(lock.mode, "exclusive");
    assert.equal(typeof lock.fencingToken, "bigint");
    assert.equal(lock.isHeld(), true);
    return (await locks.query()).held;
  });
  assert.deepEqual(
    held.map(({ name, mode, clientId }) => [name, mode, typeof clientId]),
    [["a", "exclusive", "string"]],
  );
  assert.deepEqual(await locks.query(), { held: [], pending: [] });
  assert.equal(await locks.request("a", () => 7), 7, "a plain value, too");
});

test("what the callback throws is the request's error, and the lock is free", async (t) => {
  const locks = await space(t, place).locker();
  const wrong = new RangeError("wrong");
  assert.equal(await failure(locks.request("a", () => Promise.reject(wrong))), wrong);
  assert.equal(
    await failure(
      locks.request("a", () => {
        throw wrong;
      }),
    ),
    wrong,
  );
  assert.equal(await locks.request("a", { ifAvailable: true }, (lock) => lock !== null), true);
});

test("a loss that only the release finds out is the request's error, unless the callback has one", async (t) => {
  const { locker, url } = space(t, place);
  const locks = await locker();
  // Nothing else runs here meanwhile, so nobody hears of it.
  const free = () => assert.equal(spawnSync(WINDLASS, ["release", "a", "--url", url]).status, 0);
  const error = await failure(locks.request("a", () => free()));
  assert.deepEqual([error.name, error.reason], ["LockLost", "force_released"]);
  const wrong = new RangeError("wrong");
  const fails = () => {
    free();
    throw wrong;
  };
  assert.equal(await failure(locks.request("a", fails)), wrong);
});

test("requests are granted in the order in which they were made", async (t) => {
  const locks = await space(t, place).locker();
  const { open, opened } = gate();
  const order = [];
  const all = [locks.request("a", () => opened)];
  for (let number = 0; number < 20; number++) all.push(locks.request("a", () => void order.push(number)));
  await waiters(locks, "a", 20);
  open();
  await Promise.all(all);
  assert.deepEqual(order, [...Array(20).keys()]);
});

test("shared locks are held together, and a waiting exclusive one stops later shared ones", async (t) => {
  const locks = await space(t, place).locker();
  const { open, opened } = gate();
  const order = [];
  const first = locks.request("a", { mode: "shared" }, () => opened);
  await locks.request("a", { mode: "shared" }, (lock) => assert.equal(lock.mode, "shared"));
  const writer = locks.request("a", () => void order.push("writer"));
  const reader = locks.request("a", { mode: "shared" }, () => void order.push("reader"));
  const { held, pending } = await locks.query();
  assert.deepEqual(held.map(({ mode }) => mode), ["shared"]);
  assert.deepEqual(pending.map(({ mode }) => mode), ["exclusive", "shared"]);
  open();
  await Promise.all([first, writer, reader]);
  assert.deepEqual(order, ["writer", "reader"]);
});

test("ifAvailable gives null, and does not wait", async (t) => {
  const locks = await space(t, place).locker();
  await locks.request("a", async () => {
    assert.equal(await locks.request("a", { ifAvailable: true }, (lock) => lock), null);
    assert.equal(await locks.request("a", { mode: "shared", ifAvailable: true }, (lock) => lock), null);
    assert.equal(await locks.request("b", { ifAvailable: true }, (lock) => lock.name), "b");
  });
});

test("steal takes the lock, ahead of those who wait, and its holder's request is an AbortError", async (t) => {
  const locks = await space(t, place).locker();
  const order = [];
  let signal;
  const robbed = locks.request("a", (lock) => {
    signal = lock.signal;
    return new Promise(() => {});
  });
  const told = dom(robbed, "AbortError");
  const waiting = locks.request("a", () => void order.push("waiting"));
  await waiters(locks, "a", 1);
  await locks.request("a", { steal: true }, () => void order.push("thief"));
  const error = await told;
  assert.equal(error.cause.name, "LockLost");
  assert.equal(signal.aborted, true);
  assert.deepEqual([signal.reason.name, signal.reason.reason], ["LockLost", "stolen"]);
  await waiting;
  assert.deepEqual(order, ["thief", "waiting"]);
});

test("a signal gives the waiting up, with its reason, and leaves no place in the queue", async (t) => {
  const locks = await space(t, place).locker();
  await locks.request("a", async () => {
    const control = new AbortController();
    const waiting = locks.request("a", { signal: control.signal }, () => assert.fail("granted"));
    await waiters(locks, "a", 1);
    control.abort();
    await dom(waiting, "AbortError");
    await waiters(locks, "a", 0);
    const other = new AbortController();
    const again = locks.request("a", { signal: other.signal }, () => assert.fail("granted"));
    const reason = new Error("my reason");
    other.abort(reason);
    assert.equal(await failure(again), reason);
    const aborted = locks.request("b", { signal: AbortSignal.abort(reason) }, () => assert.fail("granted"));
    assert.equal(await failure(aborted), reason);
  });
  assert.deepEqual(await locks.query(), { held: [], pending: [] });
});

test("a signal that is aborted after the grant changes nothing", async (t) => {
  const locks = await space(t, place).locker();
  const control = new AbortController();
  const done = await locks.request("a", { signal: control.signal }, async (lock) => {
    control.abort();
    await locks.query();
    assert.equal(lock.signal.aborted, false);
    return lock.isHeld();
  });
  assert.equal(done, true);
});

test("what the platform refuses is refused, in its order, before anything is sent", async (t) => {
  const locks = await space(t, place).locker();
  const never = () => assert.fail("called");
  const type_errors = [
    [],
    ["a"],
    ["a", {}],
    ["a", {}, 7],
    ["a", 7, never],
    ["a", { mode: "wrong" }, never],
    ["a", { signal: null }, never],
    ["a", { signal: {} }, never],
    ["-a", { mode: "wrong" }, never],
    ["-a", {}, undefined],
  ];
  for (const args of type_errors) {
    const error = await failure(locks.request(...args));
    assert.ok(error instanceof TypeError, `${JSON.stringify(args)}: ${error}`);
  }
  const { signal } = new AbortController();
  const aborted = AbortSignal.abort(new Error("reason"));
  const not_supported = [
    ["-a", never],
    ["-", { steal: true, ifAvailable: true }, never],
    ["a", { steal: true, ifAvailable: true }, never],
    ["a", { steal: true, mode: "shared" }, never],
    ["a", { steal: true, signal }, never],
    ["a", { ifAvailable: true, signal }, never],
    ["a", { ifAvailable: true, signal: aborted }, never],
  ];
  for (const args of not_supported) await dom(locks.request(...args), "NotSupportedError");
  assert.deepEqual(await locks.query(), { held: [], pending: [] });
});

test("options are read once each, in the platform's order", async (t) => {
  const locks = await space(t, place).locker();
  const read = [];
  const options = new Proxy({}, { get: (_, name) => void read.push(name) });
  await locks.request("a", options, () => {});
  assert.deepEqual(read.slice(0, 4), ["ifAvailable", "mode", "signal", "steal"]);
  assert.equal(new Set(read).size, read.length);
});

test("any name but those is a name, and the same one in every form of text", async (t) => {
  const locks = await space(t, place).locker();
  for (const name of ["../x", "a b\0\n", "\u{1f512}", "é", "ü".repeat(512)]) {
    await locks.request(name, async (lock) => {
      assert.equal(lock.name, name);
      assert.deepEqual((await locks.query()).held.map((one) => one.name), [name]);
    });
  }
  assert.equal(await locks.request(7, (lock) => lock.name), "7");
});
