// Where the note is kept: in the memory of the program that serves the page. A real one would be a table with a column for the
// fencing token.

import { text } from "node:stream/consumers";

/** @returns {import("vite").Plugin} */
export function store() {
  const note = { text: "Milk\nBread\n", token: 0n };
  return {
    name: "store",
    configureServer({ middlewares }) {
      middlewares.use("/note", async (request, response) => {
        if (request.method === "PUT") {
          const token = BigInt(request.headers["fencing-token"]?.toString() ?? 0);
          if (token < note.token) {
            response.writeHead(409).end("somebody else has had the lock since");
            return;
          }
          Object.assign(note, { text: await text(request), token });
        }
        response.setHeader("content-type", "text/plain; charset=utf-8");
        response.end(note.text);
      });
    },
  };
}
