// The note, its lock, and who has it.

import { useEffect, useRef, useState } from "react";
import type { HeldLock, Locker, Status } from "windlass";

const LOCK = "note";

/** What this page has to do with the note. */
export type Phase = "reading" | "waiting" | "editing";

export function useNote(locks: Locker) {
  const status = useStatus(locks);
  const [phase, setPhase] = useState<Phase>("reading");
  const [text, setText] = useState("");
  const [trouble, setTrouble] = useState<string>();
  const lock = useRef<HeldLock>(undefined);
  const wait = useRef<AbortController>(undefined);

  // Whoever reads sees the note as it is whenever the lock has changed hands.
  useEffect(() => {
    if (phase !== "editing") load().then(setText, tell);
  }, [phase, status]);

  async function edit() {
    setTrouble(undefined);
    setPhase("waiting");
    wait.current = new AbortController();
    try {
      const held = await locks.acquire(LOCK, { signal: wait.current.signal });
      lock.current = held;
      held.signal.addEventListener("abort", () => {
        if (lock.current !== held) return;
        lock.current = undefined;
        tell(held.signal.reason);
        setPhase("reading");
      });
      setText(await load());
      setPhase("editing");
    } catch (error) {
      if (!wait.current.signal.aborted) tell(error);
      setPhase("reading");
    }
  }

  async function save() {
    const held = lock.current;
    if (held === undefined) return;
    try {
      await store(text, held);
      lock.current = undefined;
      await held.release();
      setPhase("reading");
    } catch (error) {
      tell(error);
    }
  }

  const giveUp = () => wait.current?.abort();
  const tell = (error: unknown) => setTrouble(error instanceof Error ? error.message : String(error));
  return { status, phase, text, setText, trouble, edit, save, giveUp };
}

/** Who holds the lock and who waits, as it changes. */
function useStatus(locks: Locker): Status | undefined {
  const [status, setStatus] = useState<Status>();
  useEffect(() => {
    const leaving = new AbortController();
    const watch = async () => {
      while (!leaving.signal.aborted) {
        try {
          for await (const changed of locks.watch(LOCK, { signal: leaving.signal })) setStatus(changed);
        } catch {
          // The server is away: what was seen last may not be so any more.
          setStatus(undefined);
          await new Promise((again) => setTimeout(again, 1_000));
        }
      }
    };
    void watch();
    return () => leaving.abort();
  }, [locks]);
  return status;
}

async function load(): Promise<string> {
  return (await fetch("/note")).text();
}

async function store(text: string, lock: HeldLock): Promise<void> {
  const headers = { "fencing-token": String(lock.fencingToken) };
  const answer = await fetch("/note", { method: "PUT", body: text, headers, signal: lock.signal });
  if (!answer.ok) throw new Error(await answer.text());
}
