// Chromium by its DevTools protocol, over a pipe. Those who drive browsers for tests keep every tab awake and in front;
// here tabs must be able to go to sleep.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";

import { remove, temporary } from "./kit.mjs";

const CHROMIUM = process.env.WINDLASS_CHROMIUM ?? "chromium";

/** Timers of hidden tabs ring once a minute after this many seconds, and not after five minutes. */
const THROTTLED_AFTER = 1;

export async function chromium() {
  const home = await temporary();
  const child = spawn(
    CHROMIUM,
    [
      ...["--headless=new", "--no-sandbox", "--no-first-run", "--disable-gpu", "--remote-debugging-pipe", `--user-data-dir=${home}`],
      // A server of a test has a certificate of its own making.
      "--ignore-certificate-errors",
      `--enable-features=IntensiveWakeUpThrottling:grace_period_seconds/${THROTTLED_AFTER}`,
    ],
    { stdio: ["ignore", "ignore", "ignore", "pipe", "pipe"] },
  );
  const gone = once(child, "exit");
  const answers = new Map();
  const events = new Set();
  let last = 0;
  const heard = (text) => {
    const { id, result, error, method, params, sessionId } = JSON.parse(text);
    if (id === undefined) for (const listener of events) listener({ method, params, sessionId });
    else if (error) answers.get(id).reject(new Error(`${error.message} ${error.data ?? ""}`));
    else answers.get(id).resolve(result);
    answers.delete(id);
  };
  let text = "";
  child.stdio[4].setEncoding("utf8").on("data", (data) => {
    const messages = (text + data).split("\0");
    text = messages.pop();
    messages.forEach(heard);
  });
  const send = (method, params = {}, sessionId = undefined) =>
    new Promise((resolve, reject) => {
      answers.set(++last, { resolve, reject });
      child.stdio[3].write(`${JSON.stringify({ id: last, method, params, sessionId })}\0`);
    });

  /** A tab that is in front from now on. */
  const tab = async (url, how = {}) => {
    const { targetId } = await send("Target.createTarget", { url: "about:blank", ...how });
    const { sessionId } = await send("Target.attachToTarget", { targetId, flatten: true });
    const ask = (method, params) => send(method, params, sessionId);
    const goto = async (url) => {
      await ask("Page.enable");
      const loaded = new Promise((resolve) => {
        const listener = (event) => {
          if (event.sessionId !== sessionId || event.method !== "Page.loadEventFired") return;
          events.delete(listener);
          resolve();
        };
        events.add(listener);
      });
      const { errorText } = await ask("Page.navigate", { url });
      assert.equal(errorText, undefined);
      await loaded;
    };
    /** What a piece of JavaScript gives in the page. */
    const run = async (expression) => {
      const options = { expression, awaitPromise: true, returnByValue: true, userGesture: true };
      const { result, exceptionDetails } = await ask("Runtime.evaluate", options);
      assert.equal(exceptionDetails, undefined, `${expression}: ${exceptionDetails?.exception?.description}`);
      return result.value;
    };
    if (url !== undefined) await goto(url);
    return { ask, goto, run, close: () => send("Target.closeTarget", { targetId }), front: () => send("Target.activateTarget", { targetId }) };
  };
  const end = async () => {
    child.kill("SIGKILL");
    await gone;
    await remove(home);
  };
  return { tab, end };
}
