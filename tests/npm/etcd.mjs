// A real etcd, for as long as a test.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { until } from "./kit.mjs";

// Ends etcd when its input ends, which is when the tests have ended, however they did.
const SHELL = `"$@" >"$0" 2>&1 </dev/null & pid=$!; read -r _; kill -9 $pid; wait`;

/** Starts it; gives the URL of a prefix of its own. */
export async function etcd(t) {
  const folder = await mkdtemp(join(tmpdir(), "windlass-etcd-"));
  const [client, peer] = [await portToKeep(), await portToKeep()].map((port) => `http://127.0.0.1:${port}`);
  const options = {
    "log-level": "error",
    "data-dir": join(folder, "data"),
    "listen-client-urls": client,
    "advertise-client-urls": client,
    "listen-peer-urls": peer,
    "initial-advertise-peer-urls": peer,
    "initial-cluster": `default=${peer}`,
  };
  const told = Object.entries(options).map(([name, value]) => `--${name}=${value}`);
  const log = join(folder, "log");
  const shell = spawn("sh", ["-c", SHELL, log, "etcd", "--unsafe-no-fsync", ...told], { stdio: ["pipe", "ignore", "inherit"] });
  t.after(async () => {
    shell.stdin.end();
    if (shell.exitCode === null) await once(shell, "exit");
    await rm(folder, { recursive: true });
  });
  const serves = async () => {
    if (shell.exitCode !== null) assert.fail(await readFile(log, "utf8"));
    const answer = await fetch(`${client}/health`).then((response) => response.json(), () => ({}));
    return answer.health === "true";
  };
  await until("etcd serves", serves);
  return `${client.replace("http:", "etcd:")}/locks`;
}

/** A port that nobody else is given: one from below those that the kernel gives out. */
async function portToKeep() {
  const range = await readFile("/proc/sys/net/ipv4/ip_local_port_range", "utf8");
  const below = Number(range.trim().split(/\s+/)[0]);
  for (;;) {
    const port = 1024 + Math.floor(Math.random() * (below - 1024));
    const server = createServer().listen(port, "127.0.0.1");
    const free = await once(server, "listening").then(() => true, () => false);
    if (!free) continue;
    server.close();
    await once(server, "close");
    return port;
  }
}
