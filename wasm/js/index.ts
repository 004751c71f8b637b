/** What programs see, besides the `connect` of their host. */

export * from "./errors.js";
export { HeldLock, type HeldLocks } from "./held.js";
export { type Connect, Locker } from "./locker.js";
export type { WasmSource } from "./load.js";
export type { ConnectOptions, LockOptions } from "./options.js";
export type { Holder, LockInfo, LostReason, Mode, Snapshot, Status, Waiter, Waiting } from "./seen.js";
