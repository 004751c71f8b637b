/**
 * What the package must do in every runtime: no test framework, no module but what is passed in.
 *
 * `suite(windlass, server)` gives for each step null or what went wrong; the caller says in which runtime. What one client can
 * see is looked at in detail by the package's own tests: here it is whether the host bears it.
 */

/** No step takes so long, on the busiest machine. */
const LONG = 60_000;

export default async function suite(windlass, server) {
  const outcome = {};
  for (const [step, run] of Object.entries(STEPS)) {
    outcome[step] = await within(LONG, run, windlass, server).catch(told);
    // Without the first there is nothing to see.
    if (outcome.connect !== null) break;
  }
  return outcome;
}

/** What is looked at, so that a caller sees that nothing is left out. */
export const steps = () => Object.keys(STEPS);

const STEPS = {
  async connect(windlass, server) {
    const { locks, url } = await client(windlass, server);
    same(locks.url, url);
    same(await locks.query(), { held: [], pending: [] });
    await locks.close();
  },

  /** Who asks first is first, though nobody waits for the one before to be placed. */
  async "request, in order"(windlass, server) {
    const { locks, name } = await client(windlass, server);
    const order = [];
    const tokens = [];
    const ask = (who) =>
      locks.request(name, (lock) => {
        order.push(who);
        tokens.push(lock.fencingToken);
        same(lock.name, name);
        same(lock.mode, "exclusive");
        return who;
      });
    same(await Promise.all(["a", "b", "c", "d"].map(ask)), ["a", "b", "c", "d"]);
    same(order, ["a", "b", "c", "d"]);
    is(tokens.every((token, i) => typeof token === "bigint" && (i === 0 || token > tokens[i - 1])), "fencing tokens grow");
    same(await failure(() => locks.request(name, () => Promise.reject(new RangeError("own")))), "RangeError");
    await locks.close();
  },

  async ifAvailable(windlass, server) {
    const { locks, name } = await client(windlass, server);
    const held = await locks.acquire(name);
    same(await locks.request(name, { ifAvailable: true }, (lock) => lock), null);
    await held.release();
    same(await locks.request(name, { ifAvailable: true }, (lock) => lock.name), name);
    await locks.close();
  },

  /** Two hold at once, and an exclusive claim waits for both. */
  async shared(windlass, server) {
    const { locks, name } = await client(windlass, server);
    const [one, two] = await Promise.all([1, 2].map(() => locks.acquire(name, { mode: "shared" })));
    let alone = false;
    const exclusive = locks.request(name, () => void (alone = true));
    await until(async () => (await locks.query()).pending.length === 1);
    await one.release();
    same(alone, false);
    await two.release();
    await exclusive;
    same(alone, true);
    await locks.close();
  },

  async steal(windlass, server) {
    const { locks, name } = await client(windlass, server);
    let lost;
    const victim = locks.request(name, (lock) => {
      lost = aborted(lock.signal);
      return lost;
    });
    await until(() => lost !== undefined);
    const [ofVictim] = await Promise.all([failure(() => victim), locks.request(name, { steal: true }, () => {})]);
    same(ofVictim, "AbortError");
    const { name: error, reason } = await lost;
    same([error, reason], ["LockLost", "stolen"]);
    await locks.close();
  },

  /** A signal ends the waiting and leaves no place in the queue. */
  async "signal"(windlass, server) {
    const { locks, name } = await client(windlass, server);
    const held = await locks.acquire(name);
    const givingUp = new AbortController();
    const waiting = locks.request(name, { signal: givingUp.signal }, () => "granted");
    await until(async () => (await locks.query()).pending.length === 1);
    givingUp.abort();
    same(await failure(() => waiting), "AbortError");
    await until(async () => (await locks.query()).pending.length === 0);
    same(held.isHeld(), true);
    await locks.close();
  },

  async query(windlass, server) {
    const { locks, name } = await client(windlass, server, { owner: "ann" });
    const held = await locks.acquire(name, { metadata: { job: "one" } });
    const waiting = locks.request(name, { mode: "shared", owner: "bob" }, () => {});
    await until(async () => (await locks.query()).pending.length === 1);
    const { held: [holder], pending: [waiter] } = await locks.query();
    same([holder.name, holder.mode, holder.clientId, holder.metadata], [name, "exclusive", "ann", { job: "one" }]);
    same(holder.fencingToken, held.fencingToken);
    same([waiter.name, waiter.mode, waiter.clientId], [name, "shared", "bob"]);
    await held.release();
    await waiting;
    same(await locks.query(), { held: [], pending: [] });
    await locks.close();
  },

  /** As `await using` does it; the syntax itself is younger than some hosts. */
  async "acquire, asyncDispose"(windlass, server) {
    const { locks, name } = await client(windlass, server);
    const dispose = Symbol.asyncDispose ?? Symbol.for("Symbol.asyncDispose");
    const lock = await locks.acquire(name);
    same(lock.isHeld(), true);
    lock.check();
    await lock[dispose]();
    same(lock.isHeld(), false);
    same(await failure(() => lock.check()), "NotHeld");
    await lock.release();
    const all = await locks.acquireAll([`${name}/b`, `${name}/a`]);
    same(all.map((lock) => lock.name), [`${name}/b`, `${name}/a`]);
    await all[dispose]();
    same(await locks.list(), []);
    await locks.close();
  },

  async timeout(windlass, server) {
    const { locks, name } = await client(windlass, server);
    const held = await locks.acquire(name, { owner: "ann" });
    let error;
    // How long it takes to hear who holds it depends on the machine.
    for (let timeout = 200; !error?.waiting && timeout < 20_000; timeout *= 2) {
      error = await thrown(() => locks.acquire(name, { timeout }));
    }
    same([error.name, error.lock, error.waiting?.place], ["Timeout", name, 1]);
    is(error instanceof windlass.Timeout && error instanceof windlass.WindlassError, "its class");
    is(error.message.includes("ann"), `the message says who holds it: ${error.message}`);
    await held.release();
    await locks.close();
  },

  /** An operator takes the lock away: the holder hears of it while it waits for something else. */
  async lost(windlass, server) {
    const { locks, name } = await client(windlass, server);
    const held = await locks.acquire(name);
    const lost = aborted(held.signal);
    const [taken] = await locks.forceRelease(name);
    same(taken.fencingToken, held.fencingToken);
    const { name: error, reason } = await lost;
    same([error, reason], ["LockLost", "force_released"]);
    same(held.isHeld(), false);
    same(await failure(() => held.check()), "LockLost");
    same(await failure(() => held.release()), "LockLost");
    await locks.close();
  },

  /** It lives on beyond its TTL, which is renewed. */
  async renewed(windlass, server) {
    const { locks, name } = await client(windlass, server, { ttl: 3_000 });
    const held = await locks.acquire(name);
    await pause(4_000);
    same(held.isHeld(), true);
    same((await locks.query()).held[0].fencingToken, held.fencingToken);
    await held.release();
    await locks.close();
  },

  async "detach, attach"(windlass, server) {
    const { locks, name, url } = await client(windlass, server);
    const held = await locks.acquire(name);
    const ticket = held.detach();
    same(held.isHeld(), false);
    await locks.close();
    const other = await windlass.connect(url);
    const again = await other.attach(ticket);
    same([again.name, again.fencingToken, again.isHeld()], [name, held.fencingToken, true]);
    await again.release();
    same(await other.list(), []);
    await other.close();
  },

  async watch(windlass, server) {
    const { locks, name } = await client(windlass, server);
    const seen = [];
    let watched = false;
    const watching = (async () => {
      for await (const { name: changed, holders } of locks.watch(name)) {
        seen.push([changed, holders.length]);
        watched ||= changed === `${name}/first`;
        if (changed === name && holders.length === 0) break;
      }
    })();
    await holding(await locks.acquire(`${name}/first`), async () => until(() => watched));
    await holding(await locks.acquire(name), async () => until(() => seen.some(([changed]) => changed === name)));
    await watching;
    same(seen.at(-1), [name, 0]);
    await locks.close();
  },

  async close(windlass, server) {
    const { locks, name, url } = await client(windlass, server);
    const held = await locks.acquire(name);
    await locks.close();
    same(held.isHeld(), false);
    same(await failure(() => locks.acquire(name)), "Closed");
    const other = await windlass.connect(url);
    same(await other.list(), []);
    await other.close();
  },

  async errors(windlass, server) {
    const { locks, name } = await client(windlass, server);
    same(await failure(() => locks.request("-name", () => {})), "NotSupportedError");
    same(await failure(() => locks.request(name, { mode: "odd" }, () => {})), "TypeError");
    same(await failure(() => locks.request(name)), "TypeError");
    same(await failure(() => locks.acquire("")), "InvalidName");
    same(await failure(() => locks.acquire("\ud800")), "InvalidName");
    same(await failure(() => locks.acquire(name, { timeout: -1 })), "InvalidInput");
    same(await failure(() => locks.attach("nonsense")), "InvalidInput");
    same(await failure(() => windlass.connect("carrier-pigeon:")), "InvalidInput");
    await locks.close();
    // A port that no program listens at.
    const nowhere = await windlass.connect("http://127.0.0.1:9/app");
    same(await failure(() => nowhere.list()), "Unavailable");
    await nowhere.close();
  },
};

/** A client with a namespace of its own, so that no step sees another's locks. */
async function client(windlass, server, options) {
  const url = `${server}/${crypto.randomUUID()}`;
  return { url, name: "it", locks: await windlass.connect(url, options) };
}

async function holding(lock, work) {
  await work();
  await lock.release();
}

function aborted(signal) {
  return new Promise((resolve) => {
    const tell = () => resolve(signal.reason);
    if (signal.aborted) tell();
    else signal.addEventListener("abort", tell, { once: true });
  });
}

async function thrown(work) {
  try {
    await work();
  } catch (error) {
    return error;
  }
  throw new Error("nothing was thrown");
}

const failure = async (work) => (await thrown(work)).name;

function same(is, wanted) {
  const [a, b] = [text(is), text(wanted)];
  if (a !== b) throw new Error(`${a} is not ${b}`);
}

const text = (value) => JSON.stringify(value, (_, part) => (typeof part === "bigint" ? `${part}n` : part)) ?? "undefined";

function is(condition, what) {
  if (!condition) throw new Error(`not so: ${what}`);
}

const pause = (delay) => new Promise((resolve) => setTimeout(resolve, delay));

async function until(so) {
  while (!(await so())) await pause(20);
}

async function within(limit, run, ...args) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`not done after ${limit / 1000} s`)), limit);
  });
  try {
    await Promise.race([run(...args), late]);
    return null;
  } finally {
    clearTimeout(timer);
  }
}

/** Not every host begins the stack with the message. */
export const told = (error) => `${error?.name}: ${error?.message}\n${error?.stack}`;
