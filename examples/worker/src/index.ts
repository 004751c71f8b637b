// A job that runs once, however many ask for it and wherever they are.

import { connect, type Locker } from "windlass";

interface Env {
  WINDLASS_URL: string;
  WINDLASS_TOKEN?: string;
}

/** Whoever comes as late as this finds the job being done, and not done and free again. */
const AS_LATE_AS = 2_000;

export default {
  async fetch(_request: Request, env: Env): Promise<Response> {
    return Response.json(await once(env));
  },

  async scheduled(_event: unknown, env: Env): Promise<void> {
    console.log(await once(env));
  },
};

async function once({ WINDLASS_URL, WINDLASS_TOKEN }: Env): Promise<string> {
  const locks = await connect(WINDLASS_URL, { owner: "worker", ...(WINDLASS_TOKEN && { token: WINDLASS_TOKEN }) });
  try {
    return await locks.request("nightly", { ifAvailable: true, holdAtLeast: AS_LATE_AS }, async (lock) => {
      if (lock === null) return `not done: ${await whoDoesIt(locks)}`;
      await job(lock.fencingToken, lock.signal);
      return `done, with fencing token ${lock.fencingToken}`;
    });
  } finally {
    await locks.close();
  }
}

async function whoDoesIt(locks: Locker): Promise<string> {
  const [status] = await locks.list("nightly");
  const owners = status?.holders.map(({ owner }) => owner) ?? [];
  return owners.length > 0 ? `${owners.join(", ")} does it` : "somebody has just done it";
}

/** Here would be the work. It sends the fencing token along, and ends when the signal says so. */
async function job(_fencingToken: bigint, signal: AbortSignal): Promise<void> {
  signal.throwIfAborted();
}
