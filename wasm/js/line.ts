/**
 * Keeps the order in which a program asks: requests travel apart and may overtake each other, but whoever asks first for
 * a name stands in line first, as with the platform's locks. The next request goes out once the one before it has been
 * answered: granted, or placed in the queue.
 */

/** For how long one waits for those before: behind a server that does not answer, order means nothing. */
const PATIENCE = 1_000;

export class Line {
  readonly #last = new Map<string, Promise<void>>();

  /** Stands behind those who asked for any of the names before; with none of them there is nothing to wait for. */
  enter(names: readonly string[]): Turn {
    const before = names.flatMap((name) => this.#last.get(name) ?? []);
    let done = () => {};
    const placed = new Promise<void>((resolve) => {
      done = resolve;
    });
    for (const name of names) this.#last.set(name, placed);
    const come = before.length === 0 ? undefined : within(Promise.all(before));
    const leave = () => {
      // Whoever gives up before its turn lets nobody pass those before it.
      void (come ?? Promise.resolve()).then(() => {
        done();
        for (const name of names) if (this.#last.get(name) === placed) this.#last.delete(name);
      });
    };
    return { come, leave };
  }

  /** Once all who have asked have been answered. */
  async settled(): Promise<void> {
    if (this.#last.size > 0) await within(Promise.all(this.#last.values()));
  }
}

/** A place in the line. */
export interface Turn {
  /** When it is one's turn; undefined: at once. */
  come: Promise<void> | undefined;
  /** Lets the next one go on. */
  leave: () => void;
}

function within(work: Promise<unknown>): Promise<void> {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, PATIENCE);
    void work.then(() => {
      clearTimeout(timer);
      resolve();
    });
  });
}
