// Two servers over one etcd, and clients of each in every language.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { appendFile, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

import { connect } from "windlass";

import { etcd } from "./etcd.mjs";
import { aborted, program, serve, sleep, until, WINDLASS } from "./kit.mjs";

const TURNS = 10;
const PYTHON = process.env.WINDLASS_PYTHON ?? "python3";
const PYTHON_PROGRAM = `
import pathlib, sys, windlass
url, number, tokens, turns = sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
lock = windlass.connect(url).lock("counter")
for _ in range(turns):
    with lock as held:
        number.write_text(str(int(number.read_text()) + 1))
        with open(tokens, "a") as file:
            print(held.fencing_token, file=file)
`;
const SHELL_PROGRAM = `
step='read -r n <"$1"; printf %s $((n + 1)) >"$1"; echo $WINDLASS_FENCING_TOKEN >>"$2"'
for turn in $(seq "$4"); do
    "$0" run counter --url "$1" -- sh -c "$step" sh "$2" "$3" || exit
done
`;

async function two(t) {
  const store = await etcd(t);
  const servers = [await serve({ store }), await serve({ store })];
  servers.forEach(({ end }) => t.after(end));
  return servers;
}

async function locker(t, server, options) {
  const locks = await connect(`${server.url}/team`, options);
  t.after(() => locks.close().catch(() => {}));
  return locks;
}

/** lockgate's client, as a program. */
function lockgate(folder) {
  const path = join(folder, "lockgate-http");
  execFileSync("go", ["build", "-o", path, "."], { cwd: fileURLToPath(new URL("../peers/lockgate-http", import.meta.url)) });
  return path;
}

/** Steps of a number in a file, each read and written under the lock: those of two holders at once would be lost. */
test("JavaScript, Python, the shell and Go take turns at two servers", async (t) => {
  const folder = await mkdtemp(join(tmpdir(), "windlass-store-"));
  t.after(() => rm(folder, { recursive: true }));
  const [number, tokens] = ["number", "tokens"].map((name) => join(folder, name));
  await writeFile(number, "0");
  const servers = await two(t);

  const javascript = async (locks) => {
    for (let turn = 0; turn < TURNS; turn++) {
      await locks.request("counter", async (lock) => {
        await writeFile(number, String(Number(await readFile(number, "utf8")) + 1));
        await appendFile(tokens, `${lock.fencingToken}\n`);
      });
    }
  };
  const ends = async ({ child, ended }) => {
    t.after(() => child.kill("SIGKILL"));
    const { status, out } = await ended;
    assert.equal(status, 0, out);
  };
  const go = lockgate(folder);
  const counts = async (url) => {
    const { child, said, ended } = program(go, [`${url}/locker`]);
    t.after(() => child.kill("SIGKILL"));
    const name = Buffer.from("counter").toString("hex");
    child.stdin.write(`count 1 ${name} ${TURNS} ${number}\n`);
    await Promise.race([
      ended.then(({ out }) => assert.fail(out)),
      new Promise((resolve) => child.stdout.on("data", () => said().includes("counted 1\n") && resolve())),
    ]);
  };
  const clients = servers.flatMap((server) => {
    const url = `${server.url}/team`;
    const given = [url, number, tokens, String(TURNS)];
    return [
      locker(t, server).then(javascript),
      ends(program(PYTHON, ["-c", PYTHON_PROGRAM, ...given])),
      ends(program("sh", ["-c", SHELL_PROGRAM, WINDLASS, ...given])),
      counts(url),
    ];
  });
  await Promise.all(clients);
  assert.equal(Number(await readFile(number, "utf8")), clients.length * TURNS);
  // lockgate's protocol has none.
  const told = (await readFile(tokens, "utf8")).trim().split("\n").map(BigInt);
  assert.equal(told.length, 6 * TURNS);
  told.forEach((token, n) => assert.ok(n === 0 || token > told[n - 1], `${token} after ${told[n - 1]}`));
  const locks = await locker(t, servers[0]);
  await until("nothing is left", async () => (await locks.list()).length === 0);
});

test("a client of a server that is stopped knows before another is let in", async (t) => {
  const [one, other] = await two(t);
  const [ours, theirs] = [await locker(t, one, { ttl: 2000 }), await locker(t, other, { ttl: 2000 })];
  const lock = await ours.acquire("a");
  let told = false;
  lock.signal.addEventListener("abort", () => (told = true));
  one.signal("SIGSTOP");
  const next = await theirs.acquire("a");
  assert.equal(lock.isHeld(), false);
  assert.equal(told, true);
  const reason = await aborted(lock.signal);
  assert.deepEqual([reason.name, reason.reason], ["LockLost", "unreachable"]);
  assert.ok(next.fencingToken > lock.fencingToken);
  one.signal("SIGCONT");
  // The server that goes on has nothing more to say about it.
  await sleep(4000);
  next.check();
  await next.release();
  const again = await ours.acquire("a");
  await again.release();
});
