// A function at the edge: workerd and wrangler take it as a module, Vercel's runtime by `addEventListener`.

import * as windlass from "windlass";

import suite from "./suite.mjs";

let kept;

export async function answer(request) {
  const { pathname, searchParams } = new URL(request.url);
  const server = searchParams.get("server");
  switch (pathname) {
    case "/suite":
      return Response.json(await suite(windlass, server));
    // Ends while it holds.
    case "/hold": {
      const locks = await windlass.connect(`${server}/edge`, { ttl: 1_000 });
      kept = await locks.acquire(searchParams.get("name"));
      return Response.json({ held: kept.isHeld() });
    }
    // Another request looks at it.
    case "/look":
      return Response.json({ held: kept.isHeld() });
    // Takes the lock in one request, and comes back for it in the next.
    case "/detach": {
      const locks = await windlass.connect(`${server}/edge`);
      const lock = await locks.acquire(searchParams.get("name"), { timeout: 20_000 });
      return Response.json({ ticket: lock.detach() });
    }
    case "/attach": {
      const locks = await windlass.connect(`${server}/edge`);
      const lock = await locks.attach(searchParams.get("ticket"));
      const held = lock.isHeld();
      await lock.release();
      return Response.json({ held });
    }
    // Takes a place in the queue in one request, and comes back for it in the next ones.
    case "/queue": {
      const locks = await windlass.connect(`${server}/edge`, { owner: searchParams.get("owner"), ttl: 60_000 });
      const options = { timeout: Number(searchParams.get("timeout")), keepPlace: 60_000 };
      try {
        const lock = await locks.acquire(searchParams.get("name"), { ...options, ticket: searchParams.get("ticket") ?? undefined });
        const token = String(lock.fencingToken);
        await lock.release();
        return Response.json({ token });
      } catch (error) {
        if (error.name !== "Timeout") throw error;
        return Response.json({ ticket: error.ticket, place: error.waiting.place });
      }
    }
    default:
      return new Response("no such page", { status: 404 });
  }
}

export default { fetch: answer };
