/** Locks as they change. */

import type { Watch } from "./core.js";
import type { Status } from "./seen.js";

/** An iterator whose `return` also ends a `next` that waits, which no generator can do. */
export function changes(started: Promise<Watch>, signal?: AbortSignal): AsyncIterableIterator<Status> {
  // Whoever never asks for the first change hears of no error.
  started.catch(() => {});
  const end = () => {
    signal?.removeEventListener("abort", end);
    void started.then((watch) => watch.end(), () => {});
  };
  signal?.addEventListener("abort", end, { once: true });
  return {
    async next() {
      let value: Status | undefined;
      try {
        value = await (await started).next();
      } finally {
        if (value === undefined) signal?.removeEventListener("abort", end);
      }
      if (value !== undefined) return { done: false, value };
      signal?.throwIfAborted();
      return { done: true, value };
    },
    async return() {
      end();
      return { done: true, value: undefined };
    },
    [Symbol.asyncIterator]() {
      return this;
    },
  };
}
