/** A connection to a Windlass server, with the interface of the platform's `LockManager` and more. */

import * as core from "./core.js";
import { asyncDispose } from "./dispose.js";
import { LockLost, Unavailable } from "./errors.js";
import { HeldLock, together, type HeldLocks } from "./held.js";
import * as life from "./life.js";
import { Line } from "./line.js";
import { ready, type Load } from "./load.js";
import { asked, connecting, isSignal, lockName, type ConnectOptions, type LockOptions } from "./options.js";
import { thisProgram } from "./owner.js";
import { request, type Callback } from "./request.js";
import { snapshot, type Holder, type Snapshot, type Status } from "./seen.js";
import { changes } from "./watch.js";

type Once = LockOptions & { ifAvailable: true };

/** Connects to a server: `http(s)://HOST[:PORT]/NAMESPACE`. Nothing is sent yet. */
export type Connect = (url: string | URL, options?: ConnectOptions) => Promise<Locker>;

/** `connect` for a host. It is made by each entry of the package, so that importing one does nothing. */
export function connector(load: Load): Connect {
  return async (url, options = {}) => {
    const how = connecting(options, thisProgram());
    await ready(load, options.wasm);
    return new Locker(await core.connect(String(url), how));
  };
}

/** A connection to where locks live, made by `connect`. It can stand in for `navigator.locks`. */
export class Locker implements AsyncDisposable {
  readonly #core: core.Locker;
  readonly #line = new Line();
  readonly #held = new Set<HeldLock>();

  /** @internal */
  constructor(locker: core.Locker) {
    this.#core = locker;
  }

  /** Where the locks live, as a URL without credentials. */
  get url(): string {
    return this.#core.url ?? "";
  }

  /**
   * Asks for a lock, calls the callback with it, and releases it when what the callback returns has settled. Resolves or
   * rejects as the callback does, as `navigator.locks.request`.
   *
   * When the lock is lost before the callback has settled, it rejects at once: with an `AbortError` where it was stolen, as
   * the platform says, else with `LockLost`. The callback hears of it by `lock.signal`.
   */
  request<T>(name: string, callback: Callback<HeldLock, T>): Promise<Awaited<T>>;
  request<T>(name: string, options: Once, callback: Callback<HeldLock | null, T>): Promise<Awaited<T>>;
  request<T>(
    name: string,
    options: LockOptions & { ifAvailable?: false | undefined },
    callback: Callback<HeldLock, T>,
  ): Promise<Awaited<T>>;
  request<T>(name: string, options: LockOptions, callback: Callback<HeldLock | null, T>): Promise<Awaited<T>>;
  async request<T>(...args: unknown[]): Promise<Awaited<T>> {
    const { name, options, callback } = request<HeldLock | null, T>(args);
    const [lock] = (await this.#acquire([name], options)) ?? [];
    if (lock === undefined) return await callback(null);
    return await run(lock, callback);
  }

  /** Who holds and who waits, in the form of the platform's. */
  async query(): Promise<Snapshot> {
    await this.#line.settled();
    return snapshot(await this.list());
  }

  /** Asks for a lock, to be released by `release()` or by `await using`. */
  acquire(name: string, options: Once): Promise<HeldLock | null>;
  acquire(name: string, options?: LockOptions & { ifAvailable?: false | undefined }): Promise<HeldLock>;
  acquire(name: string, options?: LockOptions): Promise<HeldLock | null>;
  async acquire(name: string, options: LockOptions = {}): Promise<HeldLock | null> {
    return (await this.#acquire([lockName(name)], options))?.[0] ?? null;
  }

  /**
   * Asks for several locks, all or none, in an order that cannot deadlock. They come in the order of the names; `timeout`
   * is for all together.
   */
  acquireAll(names: Iterable<string>, options: Once): Promise<HeldLocks | null>;
  acquireAll(
    names: Iterable<string>,
    options?: LockOptions & { ifAvailable?: false | undefined },
  ): Promise<HeldLocks>;
  acquireAll(names: Iterable<string>, options?: LockOptions): Promise<HeldLocks | null>;
  async acquireAll(names: Iterable<string>, options: LockOptions = {}): Promise<HeldLocks | null> {
    const locks = await this.#acquire(Array.from(names, lockName), options);
    return locks && together(locks);
  }

  /** Takes up a held lock from a ticket, which `detach` gave: this locker renews and releases it from now on. */
  async attach(ticket: string): Promise<HeldLock> {
    return this.#hold(await this.#core.attach(String(ticket)));
  }

  /**
   * Gives back what a ticket is for: the place in the queue that `keepPlace` kept, or the lock that `detach` left. One that is
   * not there any more is no error.
   */
  async release(ticket: string): Promise<void> {
    await this.#core.release(String(ticket));
  }

  /** Who holds and who waits, for the names that begin with `prefix`, sorted by name. */
  list(prefix = ""): Promise<Status[]> {
    return this.#core.list(prefix);
  }

  /**
   * The locks whose names begin with `prefix`, and then each one again whenever it has changed. A lock that is free comes
   * once more without holders. Ends by `break`, or by the signal.
   */
  watch(prefix = "", { signal }: { signal?: AbortSignal } = {}): AsyncIterableIterator<Status> {
    if (signal !== undefined && !isSignal(signal)) throw new TypeError("signal is not an AbortSignal");
    signal?.throwIfAborted();
    return changes(this.#core.watch(prefix), signal);
  }

  /**
   * Frees a lock as an operator: all its claims, or those with this fencing token. Whoever held it is told
   * "force_released".
   *
   * @returns whom it was taken from; empty if nobody held it.
   */
  async forceRelease(name: string, { fencingToken }: { fencingToken?: bigint } = {}): Promise<Holder[]> {
    return this.#core.forceRelease(lockName(name), fencingToken);
  }

  /** Releases everything that is held through this locker, and lets nobody acquire through it any more. */
  close(): Promise<void> {
    return this.#core.close();
  }

  [asyncDispose](): Promise<void> {
    return this.close();
  }

  /** For the life of a page. @internal */
  leave(): void {
    this.#core.leave();
  }

  /** For the life of a page. @internal */
  look(): void {
    this.#core.look();
  }

  async #acquire(names: string[], options: LockOptions): Promise<HeldLock[] | null> {
    const how = asked(options);
    const { signal } = options;
    if (signal !== undefined && !isSignal(signal)) throw new TypeError("signal is not an AbortSignal");
    signal?.throwIfAborted();
    const turn = this.#line.enter(names);
    try {
      if (turn.come !== undefined) {
        const since = performance.now();
        await unlessAborted(turn.come, signal);
        if (how.timeout !== undefined) how.timeout = Math.max(0, how.timeout - (performance.now() - since));
      }
      const { onWait } = how;
      how.onWait = (waiting) => {
        turn.leave();
        onWait(waiting);
      };
      return await this.#ask(names, how, signal);
    } finally {
      turn.leave();
    }
  }

  async #ask(names: string[], how: Parameters<core.Locker["acquire"]>[1], signal?: AbortSignal) {
    const asking = this.#core.acquire(names, how);
    const giveUp = () => asking.giveUp();
    signal?.addEventListener("abort", giveUp, { once: true });
    try {
      const locks = (await asking.answer)?.map((held) => this.#hold(held));
      if (signal?.aborted) {
        // Granted at the very moment at which it was given up.
        locks?.forEach((lock) => lock.release().catch(() => {}));
        throw signal.reason;
      }
      return locks ?? null;
    } finally {
      signal?.removeEventListener("abort", giveUp);
      asking.free();
    }
  }

  #hold(held: core.Held): HeldLock {
    const lock = new HeldLock(held, () => {
      this.#held.delete(lock);
      if (this.#held.size === 0) life.end(this);
    });
    this.#held.add(lock);
    life.begin(this);
    return lock;
  }
}

async function run<T>(lock: HeldLock, callback: Callback<HeldLock, T>): Promise<Awaited<T>> {
  let onLost = () => {};
  const lost = new Promise<never>((_, reject) => {
    onLost = () => reject(asThePlatform(lock.signal.reason));
    if (lock.signal.aborted) onLost();
    else lock.signal.addEventListener("abort", onLost);
  });
  // Where the callback settles first, nobody hears of it.
  lost.catch(() => {});
  let failed = true;
  try {
    const output = await Promise.race([(async () => await callback(lock))(), lost]);
    failed = false;
    return output;
  } finally {
    lock.signal.removeEventListener("abort", onLost);
    await lock.release().catch((error: unknown) => {
      // Work that has ended is not taken back because its release could not be confirmed; and its own error says more.
      if (!failed && !(error instanceof Unavailable)) throw asThePlatform(error);
    });
  }
}

function asThePlatform(error: unknown): unknown {
  if (!(error instanceof LockLost) || error.reason !== "stolen") return error;
  return Object.defineProperty(new DOMException(error.message, "AbortError"), "cause", { value: error });
}

function unlessAborted(work: Promise<void>, signal?: AbortSignal): Promise<void> {
  if (signal === undefined) return work;
  return new Promise((resolve, reject) => {
    const abort = () => reject(signal.reason);
    signal.addEventListener("abort", abort, { once: true });
    void work.then(() => {
      signal.removeEventListener("abort", abort);
      resolve();
    });
  });
}
