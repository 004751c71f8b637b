// What goes beyond navigator.locks: held locks as values.

import assert from "node:assert/strict";
import { test } from "node:test";
import { inspect } from "node:util";

import { aborted, failure, gate, program, server, sleep, space, until, waiters, windlass } from "./kit.mjs";

const place = server();
const PYTHON = process.env.WINDLASS_PYTHON ?? "python3";

test("a lock is held until its release, and released twice without harm", async (t) => {
  const { locker } = space(t, place);
  const [ours, theirs] = [await locker(), await locker()];
  const lock = await ours.acquire("a");
  lock.check();
  assert.equal(await theirs.acquire("a", { ifAvailable: true }), null);
  await lock.release();
  assert.equal(lock.isHeld(), false);
  assert.equal((await failure((async () => lock.check())())).name, "NotHeld");
  await lock.release();
  assert.equal(lock.signal.aborted, false, "released is not lost");
  const next = await theirs.acquire("a");
  assert.ok(next.fencingToken > lock.fencingToken);
  assert.ok(next.heldFor >= 0 && next.heldFor < 60_000);
});

test("a lock and a locker are disposable", async (t) => {
  const { locker } = space(t, place);
  const [ours, theirs] = [await locker(), await locker()];
  const dispose = Symbol.asyncDispose ?? Symbol.for("Symbol.asyncDispose");
  const lock = await ours.acquire("a");
  await lock[dispose]();
  assert.equal(lock.isHeld(), false);
  const kept = await ours.acquire("a");
  await ours[dispose]();
  assert.equal((await aborted(kept.signal)).reason, "session_ended");
  assert.equal((await failure(ours.acquire("b"))).name, "Closed");
  assert.ok(await theirs.acquire("a", { ifAvailable: true }));
});

test("a timeout says who holds the lock and which place one had", async (t) => {
  const { locker } = space(t, place);
  const [ours, theirs] = [await locker({ owner: "ann", metadata: { job: "7" } }), await locker()];
  await ours.acquire("a");
  const told = [];
  const error = await failure(theirs.acquire("a", { timeout: 2_000, onWait: (waiting) => told.push(waiting) }));
  assert.equal(error.name, "Timeout");
  assert.match(error.message, /lock "a" in http.*: not acquired within 2 s: held by ann \(exclusive.*; place 1 in the queue/);
  assert.equal(error.lock, "a");
  assert.equal(error.waiting.place, 1);
  const [{ owner, metadata, mode, fencingToken }] = error.waiting.holders;
  assert.deepEqual([owner, metadata, mode, typeof fencingToken], ["ann", { job: "7" }, "exclusive", "bigint"]);
  assert.equal(told.length, 1);
  assert.match(told[0].text, /held by ann/);
  await waiters(theirs, "a", 0);
});

test("a release reaches the next one, and who holds hears that somebody waits", async (t) => {
  const { locker } = space(t, place);
  const [ours, theirs] = [await locker(), await locker()];
  const { open, opened } = gate();
  const lock = await ours.acquire("a", { onContended: open });
  const waiting = theirs.acquire("a");
  await opened;
  await lock.release();
  assert.equal((await waiting).isHeld(), true);
});

test("a lock lives for longer than its TTL", async (t) => {
  const locks = await space(t, place).locker({ ttl: 3000 });
  const lock = await locks.acquire("a");
  await sleep(5000);
  lock.check();
  assert.equal(lock.signal.aborted, false);
});

test("a lock that an operator frees is lost: its signal says so, and so does its end", async (t) => {
  const { locker, url } = space(t, place);
  const locks = await locker();
  const lock = await locks.acquire("a");
  const taken = await locks.forceRelease("a");
  assert.deepEqual(taken.map((holder) => holder.fencingToken), [lock.fencingToken]);
  const reason = await aborted(lock.signal);
  assert.deepEqual([reason.name, reason.reason, reason.lock], ["LockLost", "force_released", "a"]);
  assert.equal(lock.isHeld(), false);
  assert.equal((await failure(lock.release())).name, "LockLost");
  assert.deepEqual(await locks.forceRelease("a"), []);

  const lost = failure(locks.request("b", () => new Promise(() => {})));
  await until("it is held", async () => (await locks.query()).held.length === 1);
  const { status } = await windlass("release", "b", "--url", url).ended;
  assert.equal(status, 0);
  assert.equal((await lost).name, "LockLost");
});

test("only the grant with the fencing token is freed", async (t) => {
  const locks = await space(t, place).locker();
  const lock = await locks.acquire("a");
  assert.deepEqual(await locks.forceRelease("a", { fencingToken: lock.fencingToken + 1n }), []);
  assert.equal(lock.isHeld(), true);
  assert.equal((await locks.forceRelease("a", { fencingToken: lock.fencingToken })).length, 1);
});

test("permits let in as many as there may be", async (t) => {
  const { locker } = space(t, place);
  const locks = await locker();
  const ask = (more) => locks.acquire("a", { mode: "permit", limit: 2, ...more });
  const [one, two] = [await ask(), await ask()];
  assert.equal(one.mode, "permit");
  assert.equal(await ask({ ifAvailable: true }), null);
  assert.deepEqual((await locks.query()).held.map(({ limit }) => limit), [2, 2]);
  const third = ask();
  await two.release();
  assert.equal((await third).isHeld(), true);
});

test("an upgradable lock becomes exclusive, and an exclusive one shared", async (t) => {
  const locks = await space(t, place).locker();
  const reader = await locks.acquire("a", { mode: "shared" });
  const lock = await locks.acquire("a", { mode: "upgradable" });
  assert.equal((await failure(lock.upgrade({ timeout: 50 }))).name, "Timeout");
  await reader.release();
  await lock.upgrade();
  assert.equal(lock.mode, "exclusive");
  await lock.downgrade();
  assert.equal(lock.mode, "shared");
  assert.ok(await locks.acquire("a", { mode: "shared", ifAvailable: true }));
});

test("several are taken together, all or none", async (t) => {
  const { locker } = space(t, place);
  const [ours, theirs] = [await locker(), await locker()];
  const locks = await ours.acquireAll(["b", "a"]);
  assert.deepEqual(locks.map((lock) => lock.name), ["b", "a"]);
  assert.equal(await theirs.acquireAll(["c", "a"], { ifAvailable: true }), null);
  const error = await failure(theirs.acquireAll(["c", "a"], { timeout: 50 }));
  assert.equal(error.name, "Timeout");
  assert.deepEqual((await ours.query()).held.map(({ name }) => name).sort(), ["a", "b"]);
  await locks[Symbol.asyncDispose ?? Symbol.for("Symbol.asyncDispose")]();
  await theirs.acquireAll(new Set(["a", "c"]));
  assert.equal((await failure(ours.acquireAll(["x", "x"]))).name, "InvalidInput");
});

test("a wait that is given up leaves nothing", async (t) => {
  const { locker } = space(t, place);
  const [ours, theirs] = [await locker(), await locker()];
  const lock = await ours.acquire("a");
  const control = new AbortController();
  const waits = [1, 2, 3].map(() => theirs.acquire("a", { signal: control.signal }));
  await waiters(theirs, "a", 3);
  control.abort();
  for (const wait of waits) assert.equal((await failure(wait)).name, "AbortError");
  await waiters(theirs, "a", 0);
  await lock.release();
  assert.ok(await theirs.acquire("a", { ifAvailable: true }));
});

test("a place in the queue is kept for its ticket, and taken up by Python", async (t) => {
  const { locker, url } = space(t, place);
  const [ours, theirs] = [await locker(), await locker({ owner: "next" })];
  const held = await ours.acquire("a");
  const error = await failure(ours.acquire("a", { timeout: 2_000, keepPlace: 60_000 }));
  assert.equal(error.name, "Timeout");
  assert.match(error.ticket, /^windlass1:/);
  const secret = error.ticket.split(":")[1];
  const json = JSON.stringify(error, (_, value) => (typeof value === "bigint" ? String(value) : value));
  for (const text of [String(error), error.stack, inspect(error, { depth: 9 }), json]) {
    assert.ok(!text.includes(secret), text);
  }
  const next = theirs.acquire("a");
  await waiters(theirs, "a", 2);
  const script = `
import sys, windlass
locker = windlass.connect(sys.argv[1], owner="python")
try:
    with locker.lock("a", timeout=2, keep_place=60, ticket=sys.argv[2]):
        raise SystemExit("held")
except windlass.Timeout as error:
    print(error.ticket)
`;
  const { status, out } = await program(PYTHON, ["-c", script, url, error.ticket]).ended;
  assert.equal(status, 0, out);
  const turn = ours.request("a", { ticket: out.trim() }, (lock) => lock.isHeld());
  await held.release();
  assert.equal(await turn, true);
  assert.equal((await next).isHeld(), true);
});

test("a kept place is given back; what keeps none is refused", async (t) => {
  const { locker } = space(t, place);
  const locks = await locker();
  const held = await locks.acquire("a");
  const { ticket } = await failure(locks.acquire("a", { timeout: 2_000, keepPlace: 60_000 }));
  await waiters(locks, "a", 1);
  await locks.release(ticket);
  await locks.release(ticket);
  await waiters(locks, "a", 0);
  const plain = await failure(locks.acquire("a", { timeout: 500 }));
  assert.equal(plain.ticket, undefined);
  for (const options of [{ keepPlace: 1_000 }, { keepPlace: 0, timeout: 1 }, { ticket, mode: "shared" }, { ticket: "no ticket" }]) {
    assert.equal((await failure(locks.acquire("a", options))).name, "InvalidInput", JSON.stringify(options));
  }
  assert.equal((await failure(locks.release("no ticket"))).name, "InvalidInput");
  assert.equal((await failure(locks.acquireAll(["a", "b"], { timeout: 1, keepPlace: 1_000 }))).name, "InvalidInput");
  assert.equal(held.isHeld(), true);
});

test("a ticket hands a lock to Python and back", async (t) => {
  const { locker, url } = space(t, place);
  const locks = await locker();
  const lock = await locks.acquire("a");
  const { fencingToken } = lock;
  const ticket = lock.detach();
  assert.equal(lock.isHeld(), false);
  assert.equal(lock.signal.aborted, false, "handed on is not lost");
  const script = `
import sys, windlass
held = windlass.connect(sys.argv[1]).attach(sys.argv[2])
held.check()
print(held.fencing_token, held.detach())
`;
  const { status, out } = await program(PYTHON, ["-c", script, url, ticket]).ended;
  assert.equal(status, 0, out);
  const [token, back] = out.trim().split(" ");
  assert.equal(BigInt(token), fencingToken);
  const again = await locks.attach(back);
  assert.deepEqual([again.name, again.fencingToken, again.isHeld()], ["a", fencingToken, true]);
  await locks.forceRelease("a");
  assert.equal((await aborted(again.signal)).reason, "force_released");
  assert.equal((await failure(locks.attach(back))).name, "NotHeld");
  assert.equal((await failure(locks.attach("no ticket"))).name, "InvalidInput");
});

test("a lock excludes the shell, and the shell a lock", async (t) => {
  const { locker, url } = space(t, place);
  const locks = await locker();
  const run = (...more) => windlass("run", "deploy", "--url", url, ...more);
  const lock = await locks.acquire("deploy");
  assert.equal((await run("--try", "--", "true").ended).status, 1);
  await lock.release();

  const shell = run("--", "sh", "-c", "echo $WINDLASS_FENCING_TOKEN; read line");
  await until("the shell holds it", () => shell.said().includes("\n"));
  assert.equal(await locks.acquire("deploy", { ifAvailable: true }), null);
  const waiting = locks.acquire("deploy");
  await waiters(locks, "deploy", 1);
  shell.child.stdin.end("\n");
  assert.equal((await shell.ended).status, 0);
  assert.ok((await waiting).fencingToken > BigInt(shell.said().trim()));
});

test("what a page does when it goes away: all is released at once, and its locks are told", async (t) => {
  const { locker } = space(t, place);
  const [ours, theirs] = [await locker(), await locker()];
  const [lock, waiting] = [await ours.acquire("a"), theirs.acquire("a")];
  await waiters(theirs, "a", 1);
  ours.leave();
  assert.equal((await aborted(lock.signal)).reason, "session_ended");
  assert.equal((await waiting).isHeld(), true);
  assert.ok(await ours.acquire("b"), "it can come back");
});

test("a program that closes its locker ends at once", async (t) => {
  const { url } = space(t, place);
  const script = `
    import { connect } from "windlass";
    const locks = await connect(process.argv[1]);
    await (await locks.acquire("a")).release();
    await locks.acquire("b", { ttl: 60000 });
    await locks.close();
    const closed = performance.now();
    process.on("exit", () => console.log(performance.now() - closed));
  `;
  const { status, out } = await program(process.execPath, ["--input-type=module", "-e", script, url]).ended;
  assert.equal(status, 0, out);
  assert.ok(Number(out) < 4000, `it lived on for ${out.trim()} ms`);
});

test("a program that has released its locks ends soon", async (t) => {
  const { url } = space(t, place);
  const script = `
    import { connect } from "windlass";
    const locks = await connect(process.argv[1], { ttl: 60000 });
    await locks.request("a", () => {});
    const released = performance.now();
    process.on("exit", () => console.log(performance.now() - released));
  `;
  const { status, out } = await program(process.execPath, ["--input-type=module", "-e", script, url]).ended;
  assert.equal(status, 0, out);
  assert.ok(Number(out) < 4000, `it lived on for ${out.trim()} ms`);
});
