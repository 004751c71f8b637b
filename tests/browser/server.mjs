// A server, and clients of it by its own protocol.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { createInterface } from "node:readline";

export const WINDLASS = process.env.WINDLASS ?? new URL("../../target/debug/windlass", import.meta.url).pathname;

/** Starts `windlass serve`, at this address or a free one, over this store or none. */
export async function serve({ listen = "127.0.0.1:0", store, args = [] } = {}) {
  const keeps = store ? ["--store", store] : ["--ephemeral"];
  const child = spawn(WINDLASS, ["serve", ...keeps, "--listen", listen, ...args], {
    stdio: ["ignore", "ignore", "pipe"],
  });
  child.on("error", (error) => assert.fail(`${WINDLASS} cannot be started: ${error.message}`));
  const said = [];
  for await (const line of createInterface({ input: child.stderr })) {
    said.push(line);
    const url = line.match(/(https?:\/\/[^/]+)\/NAMESPACE/)?.[1];
    if (url) {
      child.stderr.resume();
      const end = async () => {
        child.kill("SIGKILL");
        if (child.exitCode === null && child.signalCode === null) await once(child, "exit");
      };
      return { url, listen: new URL(url).host, end, signal: (name) => child.kill(name) };
    }
  }
  return assert.fail(`the server did not start:\n${said.join("\n")}`);
}

export const id = () => randomBytes(16).toString("hex");

/** Asks the server as a program would. */
export async function ask(url, namespace, verb, question, token) {
  const headers = token ? { authorization: `Bearer ${token}` } : {};
  const response = await fetch(`${url}/v1/${namespace}/${verb}`, { method: "POST", headers, body: JSON.stringify(question) });
  const answer = await response.json();
  assert.ok(response.ok, JSON.stringify(answer));
  return answer;
}

/** Takes a lock, for long. */
export async function hold(url, namespace, name, owner, more = {}) {
  const claim = id();
  const question = { name, claim, owner, ttl_ms: 600_000, ...more };
  const answer = await ask(url, namespace, "acquire", question, more.token);
  assert.equal(answer.outcome, "granted");
  return { name, claim };
}

/** Stands in line. */
export function wait(url, namespace, name, owner, more = {}) {
  const claim = id();
  const granted = ask(url, namespace, "acquire", { name, claim, owner, ttl_ms: 600_000, ...more });
  // The server may be ended under it.
  granted.catch(() => {});
  return { name, claim, granted };
}

export const release = (url, namespace, ...claims) =>
  ask(url, namespace, "release", { claims: claims.map(({ name, claim }) => ({ name, claim })) });
