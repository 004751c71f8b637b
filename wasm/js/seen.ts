/** What is seen of locks. Times are in milliseconds. */

/**
 * How a lock is shared: alone, with other shared claims, shared and able to become exclusive, or with other permits up to
 * a limit (a semaphore).
 */
export type Mode = "exclusive" | "shared" | "upgradable" | "permit";

/** Why a lock that was held ended without its release. */
export type LostReason = "expired" | "unreachable" | "force_released" | "stolen" | "session_ended";

/** Who holds a lock. */
export interface Holder {
  /** Who, for people to see. */
  readonly owner: string;
  readonly metadata: Readonly<Record<string, string>>;
  readonly mode: Mode;
  /** Of a permit: how many there may be. */
  readonly limit?: number;
  /** The number of the grant. */
  readonly fencingToken: bigint;
  /** For how long it has been held. */
  readonly heldFor?: number;
}

/** Who stands in line for a lock. */
export interface Waiter {
  /** Who, for people to see. */
  readonly owner: string;
  readonly metadata: Readonly<Record<string, string>>;
  readonly mode: Mode;
  /** Of a permit: how many there may be. */
  readonly limit?: number;
  /** For how long it has waited. */
  readonly waitedFor?: number;
}

/** A lock as it stands. */
export interface Status {
  readonly name: string;
  /** Who holds it; none when it is free. */
  readonly holders: readonly Holder[];
  /** Who stands in line, the next one first. */
  readonly waiters: readonly Waiter[];
}

/** Why one waits. */
export interface Waiting {
  readonly holders: readonly Holder[];
  /** One's place in the queue, 1 for the next in line. */
  readonly place?: number;
  /** The same for people: `held by ann@build-7:4711 (exclusive, for 12 s); place 3 in the queue`. */
  readonly text: string;
}

/** A claim in the form of the platform's `LockInfo`. */
export interface LockInfo {
  readonly name: string;
  readonly mode: Mode;
  /** The owner. */
  readonly clientId: string;
}

/** All locks, in the form of the platform's `LockManagerSnapshot`. */
export interface Snapshot {
  readonly held: (LockInfo & Holder)[];
  readonly pending: (LockInfo & Waiter)[];
}

export function snapshot(locks: readonly Status[]): Snapshot {
  const info = <T extends Holder | Waiter>(name: string, claim: T) => ({ name, clientId: claim.owner, ...claim });
  return {
    held: locks.flatMap(({ name, holders }) => holders.map((holder) => info(name, holder))),
    pending: locks.flatMap(({ name, waiters }) => waiters.map((waiter) => info(name, waiter))),
  };
}
