"use strict";
// Everything that comes from the data becomes a text node; nothing here makes HTML of it.

const at = (id) => document.getElementById(id);
const state = { user: "", items: [], words: [], diversity: 0, found: [], selected: -1, asked: 0, suggestion: 0 };

function make(name, options = {}, ...children) {
  const { className, ...rest } = options;
  const element = document.createElement(name);
  if (className) element.className = className;
  for (const [key, value] of Object.entries(rest)) element.setAttribute(key, value);
  element.append(...children.filter((child) => child !== null));
  return element;
}

async function ask(path, options = {}) {
  const pairs = Object.entries(options).flatMap(([key, value]) => [value].flat().map((one) => [key, one]));
  const query = new URLSearchParams(pairs.filter(([, value]) => value !== ""));
  let reply;
  try {
    reply = await fetch(`${path}?${query}`);
  } catch {
    throw new Error("The explorer no longer answers: start it again with make explore.");
  }
  const found = await reply.json().catch(() => ({ error: `The explorer failed (${reply.status}); its terminal says why.` }));
  if (!reply.ok) throw new Error(found.error);
  return found;
}

function say(text) { at("message").textContent = text; }

function isEmpty() { return !state.user && !state.items.length && !state.words.length; }

const EMPTY = "Nothing to show yet: choose a user above, or add items to build a history.";

// Searching

async function suggest() {
  const text = at("query").value;
  const asked = ++state.suggestion;
  try {
    const { users, items } = await ask("/api/suggest", { q: text });
    if (asked !== state.suggestion) return;  // a later question has been asked meanwhile
    state.found = [...users.map((one) => ({ user: one.id, ...one })), ...items];
    say(text.trim() && !state.found.length ? `Nothing found for “${text.trim()}”: no user id and no title has it.`
      : isEmpty() ? EMPTY : "");
  } catch (error) { say(error.message); return; }
  state.selected = state.found.length && text.trim() ? 0 : -1;
  list();
}

function list() {
  const box = at("found");
  box.replaceChildren(...state.found.map((one, n) => {
    const row = make("li", { role: "option", id: `found-${n}`, "aria-selected": String(n === state.selected) },
      one.user ? one.id : `add: ${one.title}`, make("small", {}, one.user ? one.about : one.id));
    row.addEventListener("mousedown", (event) => { event.preventDefault(); choose(n); });
    return row;
  }));
  box.hidden = !state.found.length;
  at("query").setAttribute("aria-expanded", String(!box.hidden));
  if (state.selected >= 0) at("query").setAttribute("aria-activedescendant", `found-${state.selected}`);
  else at("query").removeAttribute("aria-activedescendant");
  box.children[state.selected]?.scrollIntoView({ block: "nearest" });
}

function close() { state.found = []; state.selected = -1; state.suggestion += 1; list(); }

function choose(n) {
  const one = state.found[n];
  if (!one) return;
  close();
  at("query").value = "";
  if (one.user) { state.user = one.user; state.items = []; }
  else { state.items = [...state.items, one.id]; state.user = ""; }
  look(true);
}

at("query").addEventListener("input", suggest);
at("query").addEventListener("focus", () => { if (!at("query").value) suggest(); });
at("query").addEventListener("blur", close);
at("search").addEventListener("submit", (event) => { event.preventDefault(); choose(Math.max(state.selected, 0)); });
at("query").addEventListener("keydown", (event) => {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (step && state.found.length) {
    event.preventDefault();
    state.selected = (state.selected + step + state.found.length) % state.found.length;
    list();
  } else if (event.key === "Escape") close();
});

// Showing

// Interests are numbered from 0, as in the command line, in Python and in the files of a run.
function badge(k, reason = "not seen by the model", name = "") {
  const of = name ? `${name}: ` : "";
  return k === null ? make("span", { className: "badge", title: of + reason }, "–")
    : make("span", { className: `badge k${k % 8}`, title: `${of}interest ${k}` }, String(k));
}

function recommended(items, withBadge) {
  const top = Math.max(...items.map((one) => one.score), 0), low = Math.min(...items.map((one) => one.score), 0);
  return make("ol", {}, ...items.map((one) => make("li", { className: `k${one.interest % 8}`, title: one.id },
    withBadge ? badge(one.interest) : null,
    make("span", one.chosen ? { className: "chosen" } : {}, one.chosen ? `✓ ${one.title}` : one.title),
    make("span", { className: "soft" }, ` ${one.score.toFixed(2)}`),
    make("progress", { className: "bar", max: String(top - low || 1), value: String(one.score - low), "aria-hidden": "true" }))));
}

function run(one, history) {
  const cards = one.interests.map((interest) => make("article", { className: `card k${interest.number % 8}` },
    make("h3", {}, badge(interest.number), `Interest ${interest.number}${interest.name ? `: ${interest.name}` : ""}`),
    interest.asked ? make("p", { className: "words" }, `asked in words: ${interest.asked}`) : null,
    ...interest.words.map((words) => make("p", { className: "words" }, words)),
    !one.routes || interest.asked ? null : make("p", { className: "soft" }, interest.history.length
      ? `attends to: ${interest.history.map((place) => history[place].title).join(" · ")}` : "attends to no item most"),
    recommended(interest.items, false)));
  const lost = one.unmatched.length ? make("p", { className: "soft" }, `In words, shown by no item seen: ${one.unmatched.join(" · ")}`) : null;
  const plain = one.routes ? null
    : make("p", { className: "soft" }, "This model has no routing weights: it does not say which item an interest attends to.");
  return make("section", { className: "run", "aria-label": one.name }, make("h2", {}, one.name), plain, lost,
    make("div", { className: "merged" }, make("h3", {}, "Merged list"), recommended(one.merged, true)),
    make("h3", {}, "By interest"), make("div", { className: "cards" }, ...cards));
}

function show(found) {
  // One badge for each run that knows which interest attends to an item.
  const routed = found.runs.filter((one) => one.routes);
  const badges = (place) => routed.map((run) => {
    const k = run.interests.findIndex((one) => one.history.includes(place));
    return badge(k < 0 ? null : k, "before the items that the model sees", found.runs.length > 1 ? run.name : "");
  });
  at("who").textContent = found.user ? `${found.user}: a ${found.part} user, newest first`
    : found.history.length ? "your own history, newest first" : "no history: words alone";
  at("history").replaceChildren(...found.history.map((one, place) => {
    const remove = make("button", { type: "button", "aria-label": `Remove ${one.title}` }, "×");
    remove.addEventListener("click", () => {
      state.items = found.history.map((each) => each.id).filter((_, n) => n !== place);
      state.user = "";
      look(true);
    });
    return make("li", { title: one.id }, ...badges(place), one.title, remove);
  }).reverse());
  at("later").replaceChildren(...found.later.map((one) => make("li", { title: one.id }, one.title)));
  at("next").hidden = !found.later.length;
  at("runs").className = found.runs.length > 1 ? "two" : "";
  at("runs").replaceChildren(...found.runs.map((one) => run(one, found.history)));
  at("view").hidden = false;
}

async function begin() {
  const { users } = await ask("/api/suggest").catch(() => ({ users: [] }));
  at("examples").replaceChildren(...users.map((one) => {
    const button = make("button", { type: "button" }, one.id, make("small", {}, ` ${one.about}`));
    button.addEventListener("click", () => { state.user = one.id; look(true); });
    return button;
  }));
  return users;
}

async function look(moved) {
  at("examples").replaceChildren();
  at("diversity").value = state.diversity;
  at("weight").textContent = state.diversity;
  if (moved) {
    const place = new URLSearchParams();
    if (state.user) place.set("user", state.user);
    if (state.items.length) place.set("items", state.items.join(","));
    if (state.words.length) place.set("words", state.words.join("; "));
    if (state.diversity) place.set("diversity", state.diversity);
    history.replaceState(null, "", place.size ? `?${place}` : "/");
  }
  const asked = ++state.asked;
  if (isEmpty()) {
    at("view").hidden = true;
    say(EMPTY);
    return begin();
  }
  try {
    const found = await ask("/api/look", { user: state.user, item: state.items, words: state.words, diversity: state.diversity });
    if (asked === state.asked) { say(""); show(found); }
  } catch (error) { if (asked === state.asked) { at("view").hidden = true; say(error.message); } }
}

function readWords(text) { return text.split(";").map((one) => one.trim()).filter(Boolean); }

at("ask").addEventListener("submit", (event) => { event.preventDefault(); state.words = readWords(at("words").value); look(true); });
at("clear").addEventListener("click", () => { state.user = ""; state.items = []; state.words = []; at("words").value = ""; look(true); at("query").focus(); });
at("diversity").addEventListener("input", () => { state.diversity = Number(at("diversity").value); look(true); });

(async () => {
  try {
    const { runs, items, users, missing, categories } = await ask("/api/about");
    at("diversity").disabled = !categories;
    at("why").textContent = categories ? "" : "The items have no categories, so there is nothing to diversify.";
    at("about").textContent = `${runs.map((one) => `${one.name}: ${one.about}`).join(" | ")} · ` +
      `${users.toLocaleString("en")} users, ${items.toLocaleString("en")} items. ${missing}`;
    const place = new URLSearchParams(location.search);
    state.user = place.get("user") ?? "";
    state.items = (place.get("items") ?? "").split(",").filter(Boolean);
    at("words").value = place.get("words") ?? "";
    state.words = readWords(at("words").value);
    at("ask").hidden = !runs.every((one) => one.words);
    state.diversity = categories ? Number(place.get("diversity") ?? 0) || 0 : 0;
    if (isEmpty()) {  // open on the first example
      const { users: examples } = await ask("/api/suggest");
      state.user = examples[0]?.id ?? "";
    }
    look(false);
  } catch (error) { say(error.message); }
})();
