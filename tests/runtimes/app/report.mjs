// How a page tells those who opened it how it went.

import { told } from "./suite.mjs";

export const server = new URL(location.href).searchParams.get("server");

export async function report(where, run) {
  const outcome = await Promise.resolve().then(run).catch((error) => ({ connect: told(error) }));
  await fetch("/report", { method: "POST", body: JSON.stringify({ where, outcome }) });
}

/** What a worker says. */
export function answerOf(port, worker = port) {
  return new Promise((resolve, reject) => {
    port.onmessage = ({ data }) => resolve(data);
    worker.onerror = ({ message, filename, lineno }) => reject(new Error(`${message ?? "the worker did not start"} (${filename}:${lineno})`));
  });
}
