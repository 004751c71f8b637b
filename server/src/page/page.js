// Who holds and who waits. Names and owners are what strangers chose: they get into the page as text alone.

import { Refused, Stream, ask } from "./stream.js";

/** So many holders and waiters of a lock are shown until more are wanted, and so many then. */
const FEW = 3;
const MANY = 500;
/** Names that are longer are cut off until more is wanted. */
const LONG_NAME = 160;
/** For how long rows may be made before the browser gets to draw. */
const SLICE_MS = 10;
const SAID_FOR_MS = 8000;
/** Waiters have no number: one of the same owner who came at about the same time is the same. */
const ABOUT_MS = 1500;
/** What one cannot see, or what moves the text around it. */
const UNSEEN =
  /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u115f\u1160\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff\ufff9-\ufffb]|^\s|\s$/gu;

const $ = (id) => document.getElementById(id);
const body = document.body;
const rows = document.querySelector("#locks tbody");

/** By key: `{key, namespace, name, may_force, holders, waiters, row, generation, shown}` */
const locks = new Map();
/** The keys of all rows, in their order. */
const order = [];
const dirty = new Set();
const expanded = new Set();

let stream;
let generation = 0;
let synced = false;
let lostAt;
let token = sessionStorage.getItem("token") ?? "";

// What the server tells.

function connect() {
  stream?.stop();
  $("sign-out").hidden = !token;
  $("sign-in").hidden = true;
  $("board").hidden = false;
  stream = new Stream("v1/events", token, { begin, event, lost, refused });
  show();
}

function begin() {
  generation += 1;
  synced = false;
}

function event(type, data) {
  if (type === "lock") heard(data);
  if (type === "synced") {
    for (const lock of locks.values()) if (lock.generation !== generation) free(lock);
    if (lostAt) say("Connected again.");
    synced = true;
    lostAt = undefined;
    soon();
    show();
  }
}

function heard({ namespace, name, may_force, holders, waiters }) {
  const key = `${namespace}/${name}`;
  const before = locks.get(key);
  if (holders.length + waiters.length === 0) {
    if (before) free(before);
    return;
  }
  const now = performance.now();
  const lock = before ?? { key, namespace, name };
  // The age that took the shortest way here is the true one; what was heard before a break may be from before a suspend.
  const known = lock.generation === generation ? lock : { holders: [], waiters: [] };
  const since = (ms, earlier) => Math.min(now - (ms ?? 0), earlier?.since ?? Infinity);
  lock.holders = holders.map((holder) => {
    const earlier = known.holders.find((other) => other.fencing_token === holder.fencing_token);
    return { ...holder, since: since(holder.held_for_ms, earlier) };
  });
  let at = 0;
  lock.waiters = waiters.map((waiter) => {
    const came = now - (waiter.waited_for_ms ?? 0);
    const is_same = (other) => other.owner === waiter.owner && Math.abs(other.since - came) < ABOUT_MS;
    const found = known.waiters.slice(at, at + 50).findIndex(is_same);
    if (found >= 0) at += found + 1;
    return { ...waiter, since: since(waiter.waited_for_ms, found >= 0 ? known.waiters[at - 1] : undefined) };
  });
  Object.assign(lock, { may_force, generation });
  locks.set(key, lock);
  dirty.add(lock);
  soon();
}

function free(lock) {
  locks.delete(lock.key);
  dirty.add(lock);
  soon();
}

function lost(error, pause) {
  lostAt ??= new Date();
  const status = error instanceof Refused ? `: ${error.message}` : "";
  $("broken-text").textContent = `since ${lostAt.toLocaleTimeString()}${status}. Trying again in ${age(pause + 500)}.`;
  show();
}

function refused(error) {
  forget();
  const known = token !== "";
  const why = error.status === 403 ? `not allowed: ${error.message}` : error.message;
  $("sign-in-why").textContent = known ? why[0].toUpperCase() + why.slice(1) : "This server asks who you are.";
  $("sign-in-why").classList.toggle("trouble", known);
  // It is of no more use.
  leave();
  $("sign-in").hidden = false;
  $("sign-out").hidden = true;
  $("board").hidden = true;
  show("sign-in");
  $("token").value = "";
  $("token").focus();
}

function leave() {
  sessionStorage.removeItem("token");
  token = "";
}

function forget() {
  for (const lock of locks.values()) free(lock);
  locks.clear();
  expanded.clear();
  synced = false;
  lostAt = undefined;
  if ($("force").open) $("force").close();
  draw();
}

// What is shown.

let asked = false;
function soon() {
  if (asked) return;
  asked = true;
  requestAnimationFrame(() => {
    asked = false;
    draw();
  });
}

function draw() {
  const until = performance.now() + SLICE_MS;
  for (const lock of dirty) {
    dirty.delete(lock);
    if (locks.get(lock.key) !== lock) remove(lock);
    else update(lock);
    if (performance.now() > until && dirty.size) {
      soon();
      break;
    }
  }
  count();
}

/** The place of a key among the rows. */
function place(key) {
  let [low, high] = [0, order.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (order[middle] < key) low = middle + 1;
    else high = middle;
  }
  return low;
}

function update(lock) {
  if (!lock.row) {
    lock.row = $("row").content.firstElementChild.cloneNode(true);
    write(lock.row.querySelector(".name"), lock.name);
    lock.row.querySelector(".namespace").textContent = lock.namespace;
    lock.row.querySelector(".more").addEventListener("click", () => toggle(lock));
    const at = place(lock.key);
    rows.insertBefore(lock.row, rows.children[at] ?? null);
    order.splice(at, 0, lock.key);
  }
  const is_open = expanded.has(lock.key);
  const most = is_open ? MANY : FEW;
  lock.row.classList.toggle("open", is_open);
  lock.ages = [];
  fill(lock, lock.row.querySelector(".held ul"), lock.holders, most, is_open);
  fill(lock, lock.row.querySelector(".waiting ol"), lock.waiters, most, is_open);
  const [holders, waiters] = [lock.holders.length - most, lock.waiters.length - most];
  const hidden = [
    ...(holders > 0 ? [number(holders, "more holder", "more holders")] : []),
    ...(waiters > 0 ? [number(waiters, "more waiter", "more waiters")] : []),
  ].join(", ");
  const has_more = [...lock.holders, ...lock.waiters].some((claim) => claim.metadata);
  const more = lock.row.querySelector(".more");
  more.hidden = !(is_open || hidden !== "" || has_more || lock.name.length > LONG_NAME);
  more.textContent = is_open ? "Less" : hidden || "More";
  more.setAttribute("aria-expanded", String(is_open));
  more.setAttribute("aria-label", `${more.textContent} of ${lock.name}`);
  filter(lock);
}

/** Claims as a list. What is there stays, so that the focus does. */
function fill(lock, list, claims, most, is_open) {
  claims.slice(0, most).forEach((claim, at) => {
    let item = list.children[at];
    const id = String(claim.fencing_token ?? at);
    // A holder's item is its own: a button must not become another's under somebody's finger.
    while (item && claim.fencing_token && item.dataset.id !== id && !claims.some((c) => String(c.fencing_token) === item.dataset.id)) {
      take(item);
      item = list.children[at];
    }
    if (item?.dataset.id !== id) {
      item = $("claim").content.firstElementChild.cloneNode(true);
      item.dataset.id = id;
      list.insertBefore(item, list.children[at] ?? null);
    }
    if (item.dataset.owner !== claim.owner) {
      item.dataset.owner = claim.owner;
      write(item.querySelector(".owner"), claim.owner || "unnamed");
    }
    item.querySelector(".mode").textContent = mode(claim.mode);
    if (claim.fencing_token) item.title = `fencing token ${claim.fencing_token}`;
    const metadata = item.querySelector(".metadata");
    metadata.hidden = !(is_open && claim.metadata);
    if (!metadata.hidden) write(metadata, Object.entries(claim.metadata).map(([k, v]) => `${k}=${v}`).join("  "));
    offer(lock, item, claim);
    const shown = item.querySelector(".age");
    lock.ages.push({ node: shown, since: claim.since });
    tell(shown, claim.since);
  });
  while (list.children.length > Math.min(claims.length, most)) take(list.lastElementChild);
}

/** The button to free a lock, where its reader may. */
function offer(lock, item, holder) {
  let button = item.querySelector("button");
  if (!holder.fencing_token || !lock.may_force) {
    button?.remove();
    return;
  }
  if (!button) {
    button = document.createElement("button");
    button.type = "button";
    button.className = "force quiet";
    button.textContent = "Release…";
    button.setAttribute("aria-label", `Release ${lock.name} by force, held by ${holder.owner || "unnamed"}`);
    button.addEventListener("click", () => confirm(lock, item.dataset.id));
    item.append(button);
  }
}

function remove(lock) {
  if (!lock.row) return;
  const at = place(lock.key);
  if (order[at] === lock.key) order.splice(at, 1);
  expanded.delete(lock.key);
  take(lock.row);
  lock.row = undefined;
}

/** Takes a node away; who was there with the keyboard goes on beside it. */
function take(node) {
  if (node.contains(document.activeElement)) {
    const row = node.closest("tr");
    const near = [...rows.querySelectorAll("button:not([hidden])")].filter((button) => !node.contains(button));
    const follows = (button) => row.compareDocumentPosition(button) & Node.DOCUMENT_POSITION_FOLLOWING || row.contains(button);
    (near.find((button) => follows(button) && !button.closest("tr").hidden) ?? $("search")).focus({ preventScroll: true });
  }
  node.remove();
}

function toggle(lock) {
  if (!expanded.delete(lock.key)) expanded.add(lock.key);
  update(lock);
}

/** Untrusted text, with what could not be seen in it. */
function write(node, text) {
  node.replaceChildren();
  let from = 0;
  for (const { 0: found, index } of text.matchAll(UNSEEN)) {
    const code = document.createElement("span");
    code.className = "code";
    code.textContent = `U+${found.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
    node.append(text.slice(from, index), code);
    from = index + found.length;
  }
  node.append(text.slice(from));
}

const MODES = { exclusive: "", shared: "shared", upgradable: "upgradable" };
function mode(mode) {
  return typeof mode === "object" ? `permit of ${mode.permit}` : (MODES[mode] ?? "");
}

/** As people say it. */
function age(ms) {
  const s = Math.max(0, Math.floor(ms / 1000));
  const [min, h, d] = [Math.floor(s / 60), Math.floor(s / 3600), Math.floor(s / 86_400)];
  if (s < 60) return `${s} s`;
  if (h < 1) return `${min} min ${s % 60} s`;
  if (d < 1) return `${h} h ${min % 60} min`;
  return `${d} d ${h % 24} h`;
}

function tell(node, since) {
  const text = age(performance.now() - since);
  if (node.textContent !== text) node.textContent = text;
}

function filter(lock) {
  const [wanted, namespace] = [$("search").value.trim().toLowerCase(), $("namespace").value];
  const has = (text) => text.toLowerCase().includes(wanted);
  const owns = () => [...lock.holders, ...lock.waiters].some((claim) => has(claim.owner));
  lock.row.hidden = (namespace !== "" && namespace !== lock.namespace) || !(wanted === "" || has(lock.name) || owns());
}

const number = (count, one, many) => `${count.toLocaleString("en")} ${count === 1 ? one : many}`;

function count() {
  let [shown, waiters] = [0, 0];
  const namespaces = new Set();
  for (const lock of locks.values()) {
    namespaces.add(lock.namespace);
    if (!lock.row || lock.row.hidden) continue;
    shown += 1;
    waiters += lock.waiters.length;
  }
  $("sum").textContent =
    shown === locks.size
      ? `${number(shown, "lock", "locks")} held, ${number(waiters, "waiter", "waiters")}`
      : `${shown.toLocaleString("en")} of ${number(locks.size, "lock", "locks")}`;
  $("locks").hidden = shown === 0;
  $("notice").hidden = shown > 0 || (!synced && !lostAt && locks.size > 0);
  $("notice").textContent = locks.size ? "No lock has such a name or owner." : synced || lostAt ? "Nobody holds a lock." : "Loading…";
  list(namespaces);
}

/** The namespaces to choose from. */
function list(namespaces) {
  const select = $("namespace");
  if (select.value) namespaces.add(select.value);
  const wanted = [...namespaces].sort();
  const there = [...select.options].slice(1).map((option) => option.value);
  if (wanted.join() === there.join()) return;
  const { value } = select;
  select.replaceChildren(select.options[0], ...wanted.map((name) => new Option(name, name)));
  select.value = value;
}

function show(state) {
  body.dataset.state = state ?? (lostAt ? "lost" : synced ? "live" : "loading");
  const words = { live: "Live", loading: "Connecting", lost: "No connection", "sign-in": "Signed out" };
  $("connection-text").textContent = words[body.dataset.state];
  $("broken").hidden = body.dataset.state !== "lost";
}

let silent;
function say(text) {
  $("said").textContent = text;
  clearTimeout(silent);
  silent = setTimeout(() => $("said").replaceChildren(), SAID_FOR_MS);
}

// What an operator does.

let chosen;

function confirm(lock, id) {
  const holder = lock.holders.find((holder) => String(holder.fencing_token) === id);
  if (!holder) return;
  chosen = { lock, holder };
  write($("force-name"), lock.name);
  $("force-namespace").textContent = lock.namespace;
  write($("force-holder"), holder.owner || "unnamed");
  tell($("force-age"), holder.since);
  trouble("");
  $("force-yes").disabled = false;
  $("force").showModal();
  $("force-no").focus();
}

function trouble(text) {
  $("force-trouble").textContent = text;
  $("force-trouble").hidden = text === "";
}

async function force() {
  const { lock, holder } = chosen;
  $("force-yes").disabled = true;
  // The grant that was seen, and not whoever holds the lock by now.
  const question = { name: lock.name, fencing_token: holder.fencing_token };
  try {
    const path = `v1/${encodeURIComponent(lock.namespace)}/force-release`;
    const headers = { "content-type": "application/json" };
    const answer = await ask(path, token, { method: "POST", headers, body: JSON.stringify(question) });
    const { taken_from } = await answer.json();
    $("force").close();
    const name = lock.name.length > LONG_NAME ? `${lock.name.slice(0, LONG_NAME)}…` : lock.name;
    say(taken_from.length ? `${name} was released by force.` : `${name} was free of that holder already.`);
  } catch (error) {
    $("force-yes").disabled = false;
    trouble(error instanceof Refused ? `Not released: ${error.message}` : "No connection: it is not known whether it was released.");
  }
}

$("force-yes").addEventListener("click", force);
$("force").addEventListener("close", () => {
  // Its button may be gone by now.
  if (document.activeElement === body) $("search").focus();
});
$("sign-in").addEventListener("submit", (submit) => {
  submit.preventDefault();
  token = $("token").value.trim();
  // Nothing else can be said in a header.
  if (!/^[\x21-\x7e]+$/.test(token)) {
    $("sign-in-why").textContent = "A token has letters, digits and signs only.";
    return;
  }
  sessionStorage.setItem("token", token);
  connect();
  $("search").focus();
});
$("sign-out").addEventListener("click", () => {
  leave();
  forget();
  connect();
});
$("again").addEventListener("click", () => stream.hurry());
for (const [id, on] of [["search", "input"], ["namespace", "change"]]) {
  $(id).addEventListener(on, () => {
    for (const lock of locks.values()) if (lock.row) filter(lock);
    count();
    clearTimeout(silent);
    silent = setTimeout(() => say($("sum").textContent), 700);
  });
}
addEventListener("keydown", (key) => {
  const writes = key.target instanceof HTMLInputElement || key.target instanceof HTMLSelectElement;
  if (key.key === "/" && !writes && !key.ctrlKey && !key.metaKey && !$("force").open && !$("board").hidden) {
    key.preventDefault();
    $("search").focus();
  }
});

// Time passes. In suspend one of these clocks stops, and then everything that was heard is old.

let apart = Date.now() - performance.now();
setInterval(() => {
  const now = Date.now() - performance.now();
  if (Math.abs(now - apart) > 5000) stream?.renew();
  apart = now;
  if (document.hidden) return;
  for (const lock of locks.values()) {
    if (!lock.row?.hidden) lock.ages?.forEach(({ node, since }) => tell(node, since));
  }
  if ($("force").open) tell($("force-age"), chosen.holder.since);
}, 1000);
addEventListener("online", () => stream?.hurry());
document.addEventListener("visibilitychange", () => document.hidden || stream?.hurry());

connect();
