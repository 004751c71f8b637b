/**
 * `request` as the Web Locks specification has it: the same conversions and checks in the same order, with the same
 * errors. What it does not know, such as `timeout`, comes after.
 */

import { isSignal, lockName, modeOf, type LockOptions } from "./options.js";

/** What is called with the lock, or with null where `ifAvailable` did not get it. */
export type Callback<L, T> = (lock: L) => T;

export interface Request<L, T> {
  name: string;
  options: LockOptions;
  callback: Callback<L, T>;
}

/** The platform's options in the order in which it reads them, and ours after those. */
const NAMES = [
  ...["ifAvailable", "mode", "signal", "steal"],
  ...["limit", "timeout", "keepPlace", "ticket", "ttl", "owner", "metadata"],
  ...["maxHold", "holdAtLeast", "randomDelay", "onWait", "onContended", "onHeldTooLong"],
] as (keyof LockOptions)[];

export function request<L, T>(args: readonly unknown[]): Request<L, T> {
  if (args.length < 2) throw new TypeError("request(name, options?, callback) takes 2 or 3 arguments");
  const name = String(args[0]);
  const options = args.length === 2 ? {} : read(args[1]);
  const callback = args.length === 2 ? args[1] : args[2];
  if (typeof callback !== "function") throw new TypeError("the callback is not a function");
  if (name.startsWith("-")) throw refused('names that begin with "-" are reserved');
  if (options.steal && options.ifAvailable) throw refused("steal and ifAvailable exclude each other");
  if (options.steal && (options.mode ?? "exclusive") !== "exclusive") throw refused("only an exclusive request can steal");
  if (options.signal && (options.steal || options.ifAvailable)) {
    throw refused("a signal goes with neither steal nor ifAvailable, which never wait");
  }
  options.signal?.throwIfAborted();
  return { name: lockName(name), options, callback: callback as Callback<L, T> };
}

/** Each option once, as the platform reads a dictionary. */
function read(given: unknown): LockOptions {
  if (given === undefined || given === null) return {};
  if (typeof given !== "object" && typeof given !== "function") throw new TypeError("the options are not an object");
  const options: Record<string, unknown> = {};
  for (const name of NAMES) {
    const value = (given as LockOptions)[name];
    if (value !== undefined) options[name] = converted(name, value);
  }
  return options;
}

function converted(name: keyof LockOptions, value: unknown): unknown {
  switch (name) {
    case "ifAvailable":
    case "steal":
      return Boolean(value);
    case "mode":
      return modeOf(value);
    case "signal":
      if (!isSignal(value)) throw new TypeError("signal is not an AbortSignal");
      return value;
    default:
      return value;
  }
}

function refused(message: string): DOMException {
  return new DOMException(message, "NotSupportedError");
}
