// Bad input and bad places: each a typed error that says what to do.

import assert from "node:assert/strict";
import { once } from "node:events";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";

import { connect, WindlassError } from "windlass";

import { failure, program, serve, server, sleep, space, until } from "./kit.mjs";

const place = server();

/** An HTTP server that is none of ours. */
async function foreign(t, answer) {
  const http = createServer(answer).listen(0, "127.0.0.1");
  await once(http, "listening");
  t.after(() => http.close());
  return `http://127.0.0.1:${http.address().port}`;
}

async function fails(promise, name, text) {
  const error = await failure(promise);
  assert.ok(error instanceof WindlassError, String(error));
  assert.equal(error.name, name, error.message);
  assert.match(error.message, text);
  assert.match(error.stack, new RegExp(`^${name}: `));
  return error;
}

test("a URL that is none", async () => {
  await fails(connect("nonsense"), "InvalidInput", /"nonsense" is not a URL: use http\(s\):\/\/HOST:PORT\/NAMESPACE/);
  await fails(connect("memory:"), "InvalidInput", /not a known place for locks: use http/);
  await fails(connect("http://user:secret@host/x"), "InvalidInput", /credentials do not belong in the URL/);
  await fails(connect("http://host/x?what=1"), "InvalidInput", /"what" is not known/);
  const { message } = await failure(connect("http://user:secret@host/x"));
  assert.ok(!message.includes("secret"));
});

test("options of the wrong type or that contradict each other", async (t) => {
  const { url, locker } = space(t, place);
  for (const options of [{ ttl: "1" }, { owner: 7 }, { token: 7 }, { metadata: 7 }, { metadata: { a: 7 } }]) {
    assert.ok((await failure(connect(url, options))) instanceof TypeError, JSON.stringify(options));
  }
  await fails(connect(url, { ttl: 10 }), "InvalidInput", /TTL is shorter than 1 s/);
  await fails(connect(url, { ttl: -1 }), "InvalidInput", /ttl is a number of milliseconds from 0 on, not -1/);
  await fails(connect(url, { metadata: { a: "a".repeat(3000) } }), "InvalidInput", /larger than 2 KiB/);
  const locks = await locker();
  const type_errors = [{ timeout: "1" }, { mode: "wrong" }, { onWait: 7 }, { signal: 7 }];
  for (const options of type_errors) {
    assert.ok((await failure(locks.acquire("a", options))) instanceof TypeError, JSON.stringify(options));
  }
  await fails(locks.acquire("a", { timeout: NaN }), "InvalidInput", /timeout is a number/);
  await fails(locks.acquire("a", { mode: "permit" }), "InvalidInput", /"permit" and limit go together/);
  await fails(locks.acquire("a", { limit: 2 }), "InvalidInput", /"permit" and limit go together/);
  await fails(locks.acquire("a", { mode: "permit", limit: 0 }), "InvalidInput", /limit is a whole number/);
  await fails(locks.acquire("a", { mode: "shared", steal: true }), "InvalidInput", /only an exclusive claim can steal/);
  await fails(locks.acquire("a", { ifAvailable: true, timeout: 1 }), "InvalidInput", /never waits/);
  await fails(locks.acquire("a", { maxHold: 5, holdAtLeast: 10 }), "InvalidInput", /longer than max_hold/);
});

test("a name that is none", async (t) => {
  const locks = await space(t, place).locker();
  await fails(locks.acquire(""), "InvalidName", /empty/);
  await fails(locks.acquire("a".repeat(1025)), "InvalidName", /1025 bytes/);
  await fails(locks.acquire("\ud800"), "InvalidName", /lone surrogate/);
  await fails(locks.request("a\udc00b", () => {}), "InvalidName", /lone surrogate/);
  await fails(locks.acquireAll(["a", ""]), "InvalidName", /empty/);
  await fails(locks.forceRelease("\ud800"), "InvalidName", /lone surrogate/);
});

test("a server that is down", async (t) => {
  const gone = await serve();
  await gone.end();
  const locks = await connect(`${gone.url}/x`);
  t.after(() => locks.close());
  await fails(locks.query(), "Unavailable", /http.*: cannot reach the server: .*ECONNREFUSED/);
  await fails(locks.acquire("a", { ifAvailable: true }), "Unavailable", /ECONNREFUSED/);
  await fails(locks.acquire("a", { timeout: 3_000 }), "Unavailable", /within 3 s: cannot reach the server/);
  await fails(locks.watch().next(), "Unavailable", /cannot reach/);
});

test("a wait outlives a server that comes back, at the place that it goes by", async (t) => {
  const first = await serve();
  const locks = await connect(`${first.url}/x`);
  t.after(() => locks.close());
  await first.end();
  const waiting = locks.acquire("a");
  await sleep(200);
  const second = await serve({ listen: first.listen });
  t.after(() => second.end());
  assert.equal((await waiting).isHeld(), true);
});

test("a lock whose server is gone is told lost no later than its TTL", async (t) => {
  const gone = await serve();
  const locks = await connect(`${gone.url}/x`, { ttl: 1000 });
  t.after(() => locks.close());
  const lock = await locks.acquire("a");
  await gone.end();
  await until("it is lost", () => lock.signal.aborted);
  assert.equal(lock.signal.reason.reason, "unreachable");
  assert.ok(lock.heldFor < 5_000, "soon");
});

test("what is no Windlass server", async (t) => {
  const page = await foreign(t, (_, response) => response.end("<html>"));
  const missing = await foreign(t, (_, response) => response.writeHead(404).end("none"));
  const moved = await foreign(t, (_, response) => response.writeHead(302, { location: page }).end());
  const broken = await foreign(t, (request) => request.socket.destroy());
  const ask = async (url) => (await connect(`${url}/x`)).acquire("a", { ifAvailable: true });
  await fails(ask(page), "StorageError", /not a Windlass server of this version: look at the URL/);
  await fails(ask(missing), "StorageError", /404: there is no Windlass server at this URL/);
  await fails(ask(moved), "StorageError", /302: the server has moved; use its new URL/);
  await fails(ask(broken), "Unavailable", /cannot reach the server/);
});

test("a server that asks who one is", async (t) => {
  const directory = await mkdtemp(join(tmpdir(), "windlass-npm-"));
  t.after(() => rm(directory, { recursive: true }));
  const token = "secret-secret-secret-1";
  await writeFile(join(directory, "tokens"), `${token} ci acquire,see team-a/*\n`, { mode: 0o600 });
  const strict = await serve({ args: ["--token-file", join(directory, "tokens")] });
  const all = [];
  t.after(async () => {
    await Promise.all(all.map((locks) => locks.close()));
    await strict.end();
  });
  const acquire = async (space, options) => {
    const locks = await connect(`${strict.url}/${space}`, options);
    all.push(locks);
    return locks.acquire("a", { timeout: 5_000 });
  };
  const nobody = await fails(acquire("team-a"), "Denied", /wants a token/);
  assert.equal(nobody.lock, "a");
  const wrong = await fails(acquire("team-a", { token: "wrong-wrong-wrong-1" }), "Denied", /token/);
  assert.ok(!wrong.message.includes("wrong-wrong"), "a token in a text");
  await fails(acquire("team-b", { token }), "Denied", /team-b/);
  await fails(acquire("team-a", { token: "line\nbreak" }), "Denied", /token is empty, or has spaces/);
  assert.ok(await (await acquire("team-a", { token })).release() === undefined);

  // A token that has ended is asked for anew.
  const given = ["ended-ended-ended-1", token];
  const getToken = async () => given.shift();
  assert.equal((await acquire("team-a", { getToken })).isHeld(), true);
  assert.deepEqual(given, []);
  const failing = () => Promise.reject(new Error("no session"));
  await fails(acquire("team-a", { getToken: failing }), "Denied", /getToken failed: no session/);
  await fails(acquire("team-a", { getToken: () => 7 }), "Denied", /getToken failed: what getToken gives is a string/);
  await fails(connect(strict.url, { token, getToken }), "InvalidInput", /exclude each other/);
});

test("WebAssembly that is none, and one that is given", async (t) => {
  const { url } = space(t, place);
  // In a process of its own: what is loaded once stays.
  const script = `
    import { readFile } from "node:fs/promises";
    import { fileURLToPath } from "node:url";
    import { connect } from "windlass";
    const wrong = await connect(process.argv[1], { wasm: new Uint8Array(8) }).catch((error) => error);
    console.log(wrong.name, wrong.message.includes("cannot be loaded"), wrong.cause?.name);
    const bytes = await readFile(fileURLToPath(import.meta.resolve("windlass/windlass.wasm")));
    const locks = await connect(process.argv[1], { wasm: new WebAssembly.Module(bytes) });
    console.log(await locks.request("a", (lock) => lock.name));
    await locks.close();
  `;
  const { status, out } = await program(process.execPath, ["--input-type=module", "-e", script, url]).ended;
  assert.equal(status, 0, out);
  assert.equal(out, "Unavailable true CompileError\na\n");
});
