import type { Locker, Status } from "windlass";

import { useNote } from "./useNote";

export function Note({ locks, name }: { locks: Locker; name: string }) {
  const { status, phase, text, setText, trouble, edit, save, giveUp } = useNote(locks);
  return (
    <main>
      <header>
        <h1>Shopping list</h1>
        <p className="who">
          You are <b>{name}</b>
        </p>
      </header>
      <p className={`state ${phase}`} role="status">
        {says(phase, status)}
      </p>
      <textarea
        aria-label="The note"
        value={text}
        readOnly={phase !== "editing"}
        onChange={(event) => setText(event.target.value)}
        rows={8}
      />
      <footer>
        {phase === "reading" && <button onClick={edit}>Edit</button>}
        {phase === "waiting" && <button onClick={giveUp}>Give up waiting</button>}
        {phase === "editing" && <button onClick={save}>Save</button>}
        <Waiters status={status} />
      </footer>
      {trouble !== undefined && <p role="alert">{trouble}</p>}
    </main>
  );
}

function says(phase: string, status: Status | undefined): string {
  if (phase === "editing") return "You are editing";
  const holder = status?.holders[0]?.owner;
  if (holder === undefined) return "Nobody is editing";
  return `${holder} is editing${phase === "waiting" ? "; you are in line" : ""}`;
}

function Waiters({ status }: { status: Status | undefined }) {
  const waiters = status?.waiters ?? [];
  if (waiters.length === 0) return null;
  return <p className="line">In line: {waiters.map(({ owner }) => owner).join(", ")}</p>;
}
