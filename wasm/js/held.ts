/// <reference lib="esnext.disposable" preserve="true" />
/** A held lock as a value of the program. */

import type { Held } from "./core.js";
import { asyncDispose } from "./dispose.js";
import { LockLost } from "./errors.js";
import { time } from "./options.js";
import type { Mode } from "./seen.js";

/**
 * A held lock: `release()` it, or `await using` it. It is renewed by itself until then.
 *
 * A held lock keeps itself, and in Node its process, alive: it is not released because nobody refers to it any more.
 */
export class HeldLock implements AsyncDisposable {
  /** Which lock. */
  readonly name: string;
  /**
   * Aborted when the lock is lost, with a `LockLost` as its reason: no later than another can be granted the lock, as far
   * as the host lets timers run. Hand it to `fetch` and its kind.
   */
  readonly signal: AbortSignal;
  readonly #held: Held;
  readonly #over: (lock: HeldLock) => void;
  readonly #lost = new AbortController();

  /** @internal */
  constructor(held: Held, over: (lock: HeldLock) => void) {
    this.name = held.name;
    this.signal = this.#lost.signal;
    this.#held = held;
    this.#over = over;
    held.onLost((error) => this.#lose(error));
  }

  /** How it is shared. */
  get mode(): Mode {
    return this.#held.mode;
  }

  /**
   * Greater than that of every earlier grant of this lock that it conflicts with. Send it with each side effect: a
   * resource that refuses a smaller one than the largest it has seen is never written by an old holder.
   */
  get fencingToken(): bigint {
    return this.#held.fencingToken;
  }

  /** For how many milliseconds the lock has been held. */
  get heldFor(): number {
    return this.#held.heldFor;
  }

  /** Whether the lock is certainly held: answered from the clock at every call, nobody is asked. */
  isHeld(): boolean {
    return this.#held.isHeld();
  }

  /** Throws unless the lock is certainly held: `LockLost`, or `NotHeld` when it was given back. */
  check(): void {
    this.#held.check();
  }

  /**
   * Releases the lock and waits until the server has confirmed it. It can be called more than once.
   *
   * @throws LockLost if the lock was lost before: the guarded work was not protected to its end.
   * @throws Unavailable if the server could not be told; the lock is then free when its TTL is over.
   */
  async release(): Promise<void> {
    try {
      await this.#held.release();
    } catch (error) {
      if (error instanceof LockLost) this.#lost.abort(error);
      throw error;
    } finally {
      this.#over(this);
    }
  }

  [asyncDispose](): Promise<void> {
    return this.release();
  }

  /**
   * Ends this hold without releasing the lock, and gives a ticket: text that `attach` takes, in another process or
   * language. Until then the lock stays taken, for its TTL at the most. Who has the ticket has the lock: it is a secret.
   */
  detach(): string {
    const ticket = this.#held.detach();
    this.#over(this);
    return ticket;
  }

  /** Gives up exclusiveness without a gap: shared claims that wait are let in. */
  downgrade(): Promise<void> {
    return this.#held.downgrade();
  }

  /** Makes an upgradable claim exclusive, as soon as the other shared claims are gone. */
  async upgrade({ timeout }: { timeout?: number } = {}): Promise<void> {
    await this.#held.upgrade(time("timeout", timeout));
  }

  #lose(error: Error): void {
    this.#over(this);
    this.#lost.abort(error);
  }
}

/** Held locks, in the order of the names: `await using` releases all of them. */
export interface HeldLocks extends ReadonlyArray<HeldLock>, AsyncDisposable {}

export function together(locks: HeldLock[]): HeldLocks {
  const release = async () => {
    const outcomes = await Promise.allSettled(locks.map((lock) => lock.release()));
    const failed = outcomes.filter((outcome) => outcome.status === "rejected").map(({ reason }) => reason as unknown);
    // A loss says more than what could not be told.
    if (failed.length > 0) throw failed.find((reason) => reason instanceof LockLost) ?? failed[0];
  };
  return Object.defineProperty(locks, asyncDispose, { value: release }) as unknown as HeldLocks;
}
