// Server-sent events by fetch: an EventSource cannot send the Authorization header.

/** A connection of which nothing was heard for so long is gone; the server says something each five seconds. */
const SILENCE_MS = 15_000;
const FIRST_PAUSE_MS = 500;
const LONGEST_PAUSE_MS = 10_000;

/** What the server has to say against it, as its problem (RFC 9457) says it. */
export class Refused extends Error {
  constructor(status, problem, retryAfter) {
    super(problem.detail ?? `the server answers ${status}`);
    this.status = status;
    this.retryAfterMs = problem.retry_after_ms ?? 1000 * (Number(retryAfter) || 0);
  }
}

/** Asks the server, and throws what it has against it. */
export async function ask(path, token, options = {}) {
  const headers = { ...options.headers };
  if (token) headers.authorization = `Bearer ${token}`;
  const response = await fetch(path, { ...options, headers, credentials: "omit", redirect: "error", cache: "no-store" });
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({}));
  throw new Refused(response.status, problem, response.headers.get("retry-after"));
}

/**
 * Reads a stream until `stop`, and connects again when it breaks.
 *
 * `on.begin()` comes with each connection, `on.event(type, data)` with each event, `on.lost(error, inMs)` when it broke,
 * `on.refused(error)` when the server wants another token: then it is over.
 */
export class Stream {
  #path;
  #token;
  #on;
  #stopped = false;
  #abort = new AbortController();
  #wake = () => {};
  #pause = FIRST_PAUSE_MS;

  constructor(path, token, on) {
    this.#path = path;
    this.#token = token;
    this.#on = on;
    this.#run();
  }

  stop() {
    this.#stopped = true;
    this.#abort.abort();
    this.#wake();
  }

  /** Does not wait for the end of the pause. */
  hurry() {
    this.#pause = FIRST_PAUSE_MS;
    this.#wake();
  }

  /** Connects anew, for what was heard may be old. */
  renew() {
    this.#abort.abort();
    this.hurry();
  }

  async #run() {
    while (!this.#stopped) {
      let error;
      try {
        await this.#read();
        error = new Error("the server has ended the stream");
      } catch (thrown) {
        error = thrown;
      }
      if (this.#stopped) return;
      if (error instanceof Refused && (error.status === 401 || error.status === 403)) {
        this.#on.refused(error);
        return;
      }
      // Of random length, so that many pages do not come back at once.
      const pause = Math.max(this.#pause * (0.5 + Math.random()), Math.min(error.retryAfterMs || 0, LONGEST_PAUSE_MS));
      this.#pause = Math.min(this.#pause * 2, LONGEST_PAUSE_MS);
      this.#on.lost(error, pause);
      await new Promise((wake) => {
        this.#wake = wake;
        setTimeout(wake, pause);
      });
    }
  }

  async #read() {
    const abort = new AbortController();
    this.#abort = abort;
    let silence;
    const heard = () => {
      clearTimeout(silence);
      silence = setTimeout(() => abort.abort(new Error("the server says nothing")), SILENCE_MS);
    };
    heard();
    try {
      const response = await ask(this.#path, this.#token, { signal: abort.signal });
      this.#on.begin();
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      const parse = parser((type, data) => this.#on.event(type, data));
      for (;;) {
        const { done, value } = await reader.read();
        if (done) return;
        heard();
        this.#pause = FIRST_PAUSE_MS;
        parse(value);
      }
    } finally {
      clearTimeout(silence);
      abort.abort();
    }
  }
}

/** Cuts text that comes in pieces into events. Our server writes each field in one line, and ends lines with \n. */
export function parser(event) {
  let rest = "";
  return (piece) => {
    // Pieces of one event are joined once, when its end has come.
    const end = piece.lastIndexOf("\n\n");
    if (end < 0 && !(rest.endsWith("\n") && piece.startsWith("\n"))) {
      rest += piece;
      return;
    }
    const blocks = (rest + piece).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      let type = "message";
      let data = "";
      for (const line of block.split("\n")) {
        if (line.startsWith("event: ")) type = line.slice(7);
        else if (line.startsWith("data: ")) data = line.slice(6);
      }
      if (data) event(type, JSON.parse(data));
    }
  };
}
