/** What can be said when asking for a lock, checked before anything is sent. Times are in milliseconds. */

import { InvalidInput, InvalidName } from "./errors.js";
import type { WasmSource } from "./load.js";
import type { Mode, Waiting } from "./seen.js";

/** What applies to all locks of a locker. */
export interface ConnectOptions {
  /** The bearer token, where the server asks who one is. */
  token?: string;
  /**
   * Gives a token, for tokens that end: it is asked when there is none yet, and again when the server refuses the one
   * there is.
   */
  getToken?: () => string | Promise<string>;
  /** How long a granted claim lives without renewal: 1 s to 1 h, 10 s unless told otherwise. */
  ttl?: number;
  /** Who asks, for people to see: the process, or the page's origin, unless told otherwise. */
  owner?: string;
  /** Something more about the program for people to see; 2 KiB in all at the most. */
  metadata?: Readonly<Record<string, string>>;
  /** The package's WebAssembly, where the host cannot find it by itself. */
  wasm?: WasmSource;
}

/** How to ask for a lock. */
export interface LockOptions {
  /** How to share the lock: "exclusive" unless told otherwise. */
  mode?: Mode;
  /** With mode "permit": how many may hold the lock at once. */
  limit?: number;
  /** Take the lock only if it can be had at once. */
  ifAvailable?: boolean;
  /** Take the lock from those who hold it. */
  steal?: boolean;
  /** Gives the waiting up; once the lock is granted it changes nothing. */
  signal?: AbortSignal;
  /** How long to wait at the most; for as long as it takes unless told otherwise. */
  timeout?: number;
  /**
   * With `timeout`: when it is over, keep the place in the queue for so long, an hour at the most. The error has the `ticket` of
   * the place. A turn that comes meanwhile waits for whoever has it, for the TTL at the most.
   */
  keepPlace?: number;
  /** Take up the place of an earlier request. One that is gone is no error: this one then waits at the end of the queue. */
  ticket?: string;
  /** How long the granted claim lives without renewal. */
  ttl?: number;
  /** Who asks, for people to see. */
  owner?: string;
  /** Something more about the claim for people to see. */
  metadata?: Readonly<Record<string, string>>;
  /** The longest hold: then `onHeldTooLong` is called and renewal stops, and the lock is lost when its TTL is over. */
  maxHold?: number;
  /** The shortest hold: a release before that waits. */
  holdAtLeast?: number;
  /** Wait a random time of up to this long after the lock was granted, holding it. */
  randomDelay?: number;
  /** Called when the wait begins, with who holds the lock and one's place in the queue. */
  onWait?: (waiting: Waiting) => void;
  /** Called when somebody begins to wait for the lock that is held. */
  onContended?: () => void;
  /** Called when `maxHold` is over. */
  onHeldTooLong?: () => void;
}

/** The options of a locker as the core takes them. */
export interface Connecting {
  token: string | undefined;
  getToken: (() => Promise<string>) | undefined;
  ttl: number | undefined;
  owner: string;
  metadata: string[];
}

/** Those of an acquire. */
export interface Asked {
  mode: Mode;
  limit: number;
  steal: boolean;
  ifAvailable: boolean;
  timeout: number | undefined;
  keepPlace: number | undefined;
  ticket: string | undefined;
  ttl: number | undefined;
  owner: string | undefined;
  metadata: string[];
  maxHold: number | undefined;
  holdAtLeast: number | undefined;
  randomDelay: number | undefined;
  onWait: (waiting: Waiting) => void;
  onContended: (() => void) | undefined;
  onHeldTooLong: (() => void) | undefined;
}

const MODES: readonly string[] = ["exclusive", "shared", "upgradable", "permit"];

export function connecting(options: ConnectOptions, owner: string): Connecting {
  const { getToken } = options;
  if (getToken !== undefined && typeof getToken !== "function") throw new TypeError("getToken is not a function");
  if (getToken !== undefined && options.token !== undefined) {
    throw new InvalidInput("token and getToken exclude each other");
  }
  return {
    token: text("token", options.token),
    getToken: getToken && (async () => text("what getToken gives", await getToken()) ?? ""),
    ttl: time("ttl", options.ttl),
    owner: text("owner", options.owner) ?? owner,
    metadata: pairs(options.metadata),
  };
}

export function asked(options: LockOptions): Asked {
  const mode = modeOf(options.mode ?? "exclusive");
  const { limit } = options;
  if ((mode === "permit") !== (limit !== undefined)) {
    throw new InvalidInput('mode "permit" and limit go together: how many may hold the lock at once');
  }
  if (limit !== undefined && !(Number.isInteger(limit) && limit >= 1 && limit < 2 ** 32)) {
    throw new InvalidInput(`limit is a whole number of 1 or more, not ${String(limit)}`);
  }
  return {
    mode,
    limit: limit ?? 0,
    steal: Boolean(options.steal),
    ifAvailable: Boolean(options.ifAvailable),
    timeout: time("timeout", options.timeout),
    keepPlace: time("keepPlace", options.keepPlace),
    ticket: text("ticket", options.ticket),
    ttl: time("ttl", options.ttl),
    owner: text("owner", options.owner),
    metadata: pairs(options.metadata),
    maxHold: time("maxHold", options.maxHold),
    holdAtLeast: time("holdAtLeast", options.holdAtLeast),
    randomDelay: time("randomDelay", options.randomDelay),
    onWait: callback("onWait", options.onWait) ?? (() => {}),
    onContended: callback("onContended", options.onContended),
    onHeldTooLong: callback("onHeldTooLong", options.onHeldTooLong),
  };
}

export function modeOf(value: unknown): Mode {
  const mode = String(value);
  if (!MODES.includes(mode)) throw new TypeError(`mode is one of ${MODES.join(", ")}, not ${mode}`);
  return mode as Mode;
}

/** The name of a lock, as UTF-8 can write it: JavaScript's lone surrogates would become another name. */
export function lockName(name: unknown): string {
  const given = String(name);
  // What is well formed survives; `isWellFormed` is younger than some hosts.
  if (/\p{Surrogate}/u.test(given)) {
    throw new InvalidName("the name has a lone surrogate, which UTF-8 cannot write: give well-formed text");
  }
  return given;
}

/** Whether it can be listened to as an AbortSignal, of whichever realm. */
export function isSignal(value: unknown): value is AbortSignal {
  const signal = value as Partial<AbortSignal> | null | undefined;
  return typeof signal?.aborted === "boolean" && typeof signal.addEventListener === "function";
}

/** Milliseconds; without a limit where there is none. */
export function time(name: string, value: unknown): number | undefined {
  if (value === undefined || value === Infinity) return undefined;
  if (typeof value !== "number") throw new TypeError(`${name} is a number of milliseconds, not ${typeof value}`);
  if (!(value >= 0)) throw new InvalidInput(`${name} is a number of milliseconds from 0 on, not ${value}`);
  return value;
}

function text(name: string, value: unknown): string | undefined {
  if (value !== undefined && typeof value !== "string") throw new TypeError(`${name} is a string, not ${typeof value}`);
  return value;
}

function pairs(metadata: unknown): string[] {
  if (metadata === undefined) return [];
  if (typeof metadata !== "object" || metadata === null) throw new TypeError("metadata is an object of strings");
  return Object.entries(metadata).flatMap(([key, value]) => [key, text(`metadata.${key}`, value) ?? ""]);
}

/** The program's function, called apart from ours: what it throws is an error of the program like any other. */
function callback<A extends unknown[]>(name: string, call: unknown): ((...args: A) => void) | undefined {
  if (call === undefined) return undefined;
  if (typeof call !== "function") throw new TypeError(`${name} is a function, not ${typeof call}`);
  return (...args) => queueMicrotask(() => call(...args));
}
