/** What `src/` gives: the glue that wasm-bindgen makes, and no more of it than is used. */

import type { Asked, Connecting } from "./options.js";
import type { Holder, Mode, Status } from "./seen.js";

export default function init(source: { module_or_path: unknown }): Promise<unknown>;
export function initSync(source: { module: unknown }): unknown;

export function connect(url: string, how: Connecting): Promise<Locker>;

export class Locker {
  private constructor();
  readonly url: string | undefined;
  acquire(names: string[], how: Asked): Asking;
  attach(ticket: string): Promise<Held>;
  release(ticket: string): Promise<void>;
  list(prefix: string): Promise<Status[]>;
  watch(prefix: string): Promise<Watch>;
  forceRelease(name: string, fencingToken?: bigint): Promise<Holder[]>;
  look(): void;
  leave(): void;
  close(): Promise<void>;
}

export class Asking {
  private constructor();
  readonly answer: Promise<Held[] | undefined>;
  giveUp(): void;
  free(): void;
}

export class Held {
  private constructor();
  readonly name: string;
  readonly mode: Mode;
  readonly fencingToken: bigint;
  readonly heldFor: number;
  isHeld(): boolean;
  check(): void;
  onLost(tell: (error: Error) => void): void;
  release(): Promise<void>;
  detach(): string;
  downgrade(): Promise<void>;
  upgrade(timeout?: number): Promise<void>;
}

export class Watch {
  private constructor();
  next(): Promise<Status | undefined>;
  end(): void;
}
