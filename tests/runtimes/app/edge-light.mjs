// The same in Vercel's Edge Runtime.

import { answer } from "./edge.mjs";

addEventListener("fetch", (event) => event.respondWith(answer(event.request).catch((error) => new Response(`${error?.stack}`, { status: 500 }))));
