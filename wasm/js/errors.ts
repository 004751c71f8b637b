/** The errors. They mirror the kinds of error of the core, one to one, and have the names of Python's. */

import type { LostReason, Waiting } from "./seen.js";

/** What an error knows besides its text. */
export interface ErrorDetails {
  lock?: string;
  backend?: string;
  waiting?: Waiting;
  ticket?: string;
  retryAfter?: number;
  reason?: LostReason;
  cause?: unknown;
}

/**
 * Whatever goes wrong with locks. Tell errors apart by `name`, which is that of the class: `instanceof` fails where two
 * copies of this package are in one program.
 */
export class WindlassError extends Error {
  /** The lock, where one is concerned. */
  declare readonly lock?: string;
  /** Where it happened, as a URL without credentials. */
  declare readonly backend?: string;
  /** For `Timeout`: who holds the lock and which place in the queue one had, as last heard. */
  declare readonly waiting?: Waiting;
  /**
   * Where `keepPlace` was asked for: the ticket of the place in the queue. It is a secret: `console.log` and `JSON.stringify`
   * do not show it.
   */
  declare readonly ticket?: string;
  /** After how many milliseconds the server wants to be asked again, if it said so. */
  declare readonly retryAfter?: number;
  /** For `LockLost`: why. */
  declare readonly reason?: LostReason;

  constructor(message: string, { cause, ticket, ...details }: ErrorDetails = {}) {
    super(message, cause === undefined ? undefined : { cause });
    for (const [key, value] of Object.entries(details)) if (value !== undefined) Object.assign(this, { [key]: value });
    if (ticket !== undefined) Object.defineProperty(this, "ticket", { value: ticket });
  }

  static {
    named(this, "WindlassError");
  }
}

/** The name is empty, longer than 1,024 bytes of UTF-8, or has lone surrogates. Nothing was sent. */
export class InvalidName extends WindlassError {
  static {
    named(this, "InvalidName");
  }
}

/** A URL, an option or a ticket makes no sense, or options contradict each other. Nothing was sent. */
export class InvalidInput extends WindlassError {
  static {
    named(this, "InvalidInput");
  }
}

/** The server, or this JavaScript host, cannot do what was asked. */
export class Unsupported extends WindlassError {
  static {
    named(this, "Unsupported");
  }
}

/** The lock could not be had in time; `waiting` says who holds it. Nothing is left behind, but for a place with a `ticket`. */
export class Timeout extends WindlassError {
  static {
    named(this, "Timeout");
  }
}

/** The lock was held and is no longer: another may hold it. Stop the guarded work; `reason` says why. */
export class LockLost extends WindlassError {
  declare readonly reason: LostReason;

  static {
    named(this, "LockLost");
  }
}

/** The lock is not held: released or detached before, or run out. */
export class NotHeld extends WindlassError {
  static {
    named(this, "NotHeld");
  }
}

/** The server refused: wrong or expired token, missing rights, a page whose origin it does not allow. */
export class Denied extends WindlassError {
  static {
    named(this, "Denied");
  }
}

/** The server cannot be reached or does not answer just now. Asking again may help. */
export class Unavailable extends WindlassError {
  static {
    named(this, "Unavailable");
  }
}

/** The server was reached and cannot do its work, or is no Windlass server. */
export class StorageError extends WindlassError {
  static {
    named(this, "StorageError");
  }
}

/** The locker was closed. */
export class Closed extends WindlassError {
  static {
    named(this, "Closed");
  }
}

/** A fault of this library. Please report it. */
export class InternalError extends WindlassError {
  static {
    named(this, "InternalError");
  }
}

const CLASSES: Record<string, typeof WindlassError> = {
  InvalidName,
  InvalidInput,
  Unsupported,
  Timeout,
  LockLost,
  NotHeld,
  Denied,
  Unavailable,
  StorageError,
  Closed,
  InternalError,
};

/** The error for one of the core's. Called by WebAssembly. */
export function errorOf(name: string, message: string, details: ErrorDetails): WindlassError {
  return new (CLASSES[name] ?? WindlassError)(message, details);
}

/** On the prototype, as the platform's errors have it; and in words that survive a minifier. */
function named(of: typeof WindlassError, name: string): void {
  Object.defineProperty(of.prototype, "name", { value: name, configurable: true, writable: true });
}
