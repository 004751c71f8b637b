/**
 * The life of a page: held or told lost, never silent.
 *
 * - **It goes away**, closed or into the back-forward cache: everything is released by requests that outlive it. Should it
 *   come back, its locks have been lost, and their signals say so.
 * - **It comes back** from where timers were slowed down or stopped, or goes online: its lockers look at the clock at once,
 *   which tells what was lost meanwhile and renews the rest.
 *
 * A locker is here while it holds something. That also keeps what is held from being collected as garbage.
 */

interface Living {
  leave(): void;
  look(): void;
}

const holding = new Set<Living>();
let listens = false;

export function begin(locker: Living): void {
  if (!listens && typeof document === "object") listen();
  holding.add(locker);
}

export function end(locker: Living): void {
  holding.delete(locker);
}

function listen(): void {
  listens = true;
  const each = (act: (locker: Living) => void) => () => [...holding].forEach(act);
  const look = each((locker) => locker.look());
  addEventListener("pagehide", each((locker) => locker.leave()));
  addEventListener("pageshow", look);
  addEventListener("online", look);
  document.addEventListener("visibilitychange", look);
  document.addEventListener("resume", look);
}
