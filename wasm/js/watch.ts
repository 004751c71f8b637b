/** Locks as they change. */

import type { Watch } from "./core.js";
import type { Status } from "./seen.js";

/** An iterator whose `return` also ends a `next` that waits, which no generator can do. */
export function changes(started: Promise<Watch>, signal?: AbortSignal): AsyncIterableIterator<Status> {
  // Whoever never asks for the first change hears of no error.
  started.catch(() => {});
  const end = () => void started.then((watch) => watch.end(), () => {});
  signal?.addEventListener("abort", end, { once: true });
  return {
    async next() {
      const value = await (await started).next();
      if (value !== undefined) return { done: false, value };
      signal?.removeEventListener("abort", end);
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
