// Compiled and not run: what a program writes, and what it must not.

import { connect, LockLost, Timeout, type HeldLock, type Locker, type LostReason, type Snapshot } from "windlass";

const locks: Locker = await connect("https://locks.example.com/team-a", { token: "t", ttl: 15_000 });

const written: number = await locks.request("deploy", async (lock) => {
  const token: bigint = lock.fencingToken;
  const signal: AbortSignal = lock.signal;
  return Number(token) + Number(signal.aborted);
});
const maybe: string = await locks.request("deploy", { ifAvailable: true }, (lock) => lock?.name ?? "none");
// @ts-expect-error it may be null
await locks.request("deploy", { ifAvailable: true }, (lock) => lock.name);
// @ts-expect-error no such mode
await locks.request("deploy", { mode: "wrong" }, () => {});

await using lock: HeldLock = await locks.acquire("deploy", { timeout: 5000, onWait: (waiting) => waiting.text });
const once: HeldLock | null = await locks.acquire("deploy", { ifAvailable: true });
await using all = await locks.acquireAll(["a", "b"], { mode: "permit", limit: 3 });
const names: string[] = all.map((one) => one.name);
const { held, pending }: Snapshot = await locks.query();
for await (const { name, holders, waiters } of locks.watch("job/")) console.log(name, holders, waiters);
const place: HeldLock = await locks.acquire("deploy", { timeout: 5000, keepPlace: 60_000, ticket: "windlass1:…" });
await locks.release("windlass1:…");
try {
  lock.check();
} catch (error) {
  if (error instanceof LockLost) {
    const reason: LostReason = error.reason;
    console.log(reason);
  }
  if (error instanceof Timeout) {
    const ticket: string | undefined = error.ticket;
    console.log(ticket);
  }
}
console.log(place, written, maybe, once, names, held, pending);
