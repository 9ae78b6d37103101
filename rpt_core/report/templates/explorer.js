// The token explorer: filters, the list, one document, one token. What is out of sight is not rendered.
const DATA = JSON.parse(document.getElementById("data").textContent);
const ROW = 54, CHUNK = 1000, AROUND = 200;
const LEVELS = ["below", "easy", "medium", "hard"];
const byId = (name) => document.getElementById(name);

// --- documents ----------------------------------------------------------------------------------------------------------

class Doc {
  constructor(raw) {
    Object.assign(this, raw);
    this.length = raw.bytes.length;
    this.details = new Map(raw.positions.map((position) => [position.at, position]));
  }
  get data() { // made when the document is first looked at
    if (!this.encoded) {
      this.encoded = encoder.encode(this.text);
      this.starts = [0];
      for (const length of this.bytes) this.starts.push(this.starts[this.starts.length - 1] + length);
    }
    return this.encoded;
  }
  token(at) { const data = this.data; return data.subarray(this.starts[at], this.starts[at + 1]); }
}
const DOCS = DATA.documents.map((raw) => new Doc(raw));

function right(position, part, mode) { // true, false, or null where that model was not asked in that mode; of several samples, most
  const found = position.predictions.filter((row) => DATA.models[row[0]].parts.includes(part) && row[1] === mode);
  return found.length ? found.filter((row) => row[3]).length * 2 >= found.length : null;
}
const share = (position) => position.rollouts.filter((row) => row[1] > 0).length / (position.rollouts.length || NaN);
const OUTCOMES = {
  evaluated: ["with predictions", (p) => p.predictions.length > 0],
  right: ["after RPT: right", (p) => right(p, "after", "reasoning") === true],
  wrong: ["after RPT: wrong", (p) => right(p, "after", "reasoning") === false],
  gained: ["gained: wrong before, right after", (p) => right(p, "before", "reasoning") === false && right(p, "after", "reasoning") === true],
  lost: ["lost: right before, wrong after", (p) => right(p, "before", "reasoning") === true && right(p, "after", "reasoning") === false],
  needed: ["thought helped: standard wrong, reasoning right", (p) => right(p, "after", "standard") === false && right(p, "after", "reasoning") === true],
  harmed: ["thought harmed: standard right, reasoning wrong", (p) => right(p, "after", "standard") === true && right(p, "after", "reasoning") === false],
  rolled: ["with rollouts", (p) => p.rollouts.length > 0],
  mixed: ["rollouts: right and wrong", (p) => share(p) > 0 && share(p) < 1],
  allRight: ["rollouts: all right", (p) => share(p) === 1],
  allWrong: ["rollouts: all wrong", (p) => share(p) === 0],
};
const ENTROPIES = {
  easy: ["easy: above 0.5 nats", (level) => level >= "1"], medium: ["medium: above 1.0", (level) => level >= "2"],
  hard: ["hard: above 1.5", (level) => level === "3"], below: ["below: up to 0.5", (level) => level === "0"],
};

const state = { shown: [], doc: null, matches: null, at: null };

function matchesOf(doc, level, outcome) { // indices of tokens that pass, or null where nothing is asked of tokens
  if (!level && !outcome) return null;
  const passes = level ? ENTROPIES[level][1] : () => true;
  const among = outcome ? doc.positions.filter(OUTCOMES[outcome][1]).map((position) => position.at) : doc.bytes.keys();
  return [...among].filter((at) => passes(doc.level[at]));
}

function filter() {
  const words = byId("search").value.toLowerCase();
  const [split, level, outcome] = ["split", "level", "outcome"].map((name) => byId(name).value);
  let tokens = 0;
  state.shown = [];
  for (const doc of DOCS) {
    if (split && doc.split !== split) continue;
    if (words && !doc.text.toLowerCase().includes(words) && !doc.id.includes(words) && !doc.source.toLowerCase().includes(words)) continue;
    const matches = matchesOf(doc, level, outcome);
    if (matches && !matches.length) continue;
    tokens += matches ? matches.length : 0;
    state.shown.push({ doc, matches });
  }
  const count = (number, word) => `${number.toLocaleString("en")} ${word}${number === 1 ? "" : "s"}`;
  byId("count").textContent = count(state.shown.length, "document") + (level || outcome ? `, ${count(tokens, "token")}` : "")
    + (state.shown.length === DOCS.length && DATA.total > DOCS.length ? ` of ${DATA.total.toLocaleString("en")}` : "");
  byId("list").scrollTop = 0;
  const here = state.shown.find((row) => row.doc === state.doc) || state.shown[0] || null;
  openDocument(here, here && here.doc === state.doc ? state.at : null);
}

// --- the list: only the rows in sight exist -----------------------------------------------------------------------------

function drawRows() {
  const list = byId("list"), rows = byId("rows");
  rows.style.height = `${state.shown.length * ROW}px`;
  const first = Math.max(0, Math.floor(list.scrollTop / ROW) - 6);
  const last = Math.min(state.shown.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + 6);
  const made = [];
  for (let index = first; index < last; index++) {
    const { doc, matches } = state.shown[index];
    const facts = [doc.split, doc.source, `${doc.length} tokens`, matches ? `${matches.length} match${matches.length === 1 ? "" : "es"}` : null];
    const row = el("div", "row", el("div", "", ...shown(doc.text.slice(0, 90).replace(/\s+/g, " "))),
                   el("div", "muted", facts.filter(Boolean).join(" · ")));
    row.style.top = `${index * ROW}px`;
    row.id = `row-${index}`;
    row.dataset.index = index;
    for (const [name, value] of [["role", "option"], ["aria-selected", doc === state.doc], ["aria-setsize", state.shown.length], ["aria-posinset", index + 1]])
      row.setAttribute(name, value);
    made.push(row);
  }
  rows.replaceChildren(...made);
  const chosen = state.shown.findIndex((row) => row.doc === state.doc);
  if (chosen >= first && chosen < last) list.setAttribute("aria-activedescendant", `row-${chosen}`);
  else list.removeAttribute("aria-activedescendant");
}

function step(by) { // to the next or previous document
  const index = state.shown.findIndex((row) => row.doc === state.doc) + by;
  if (index < 0 || index >= state.shown.length) return;
  openDocument(state.shown[index]);
  const list = byId("list");
  if (index * ROW < list.scrollTop) list.scrollTop = index * ROW;
  else if ((index + 1) * ROW > list.scrollTop + list.clientHeight) list.scrollTop = (index + 1) * ROW - list.clientHeight;
  drawRows();
}

// --- one document: tokens are added as they come into sight -------------------------------------------------------------

const watch = new IntersectionObserver((seen) => { if (seen.some((one) => one.isIntersecting)) drawTokens(state.drawn + CHUNK); },
                                       { root: byId("reader"), rootMargin: "600px" });

function openDocument(row, at = null) {
  state.doc = row ? row.doc : null;
  state.matches = row ? row.matches : null;
  state.at = null;
  state.drawn = 0;
  byId("tokens").replaceChildren();
  byId("tokens").classList.toggle("filtered", Boolean(state.matches));
  byId("reader").scrollTop = 0;
  const doc = state.doc;
  byId("about").textContent = doc ? `${doc.id} · ${doc.split} · ${doc.source} · ${doc.length} tokens` + (doc.cut ? `, ${doc.cut} more left out` : "")
    : "No document passes these filters.";
  if (doc) drawTokens(CHUNK);
  drawRows();
  byId("list").classList.remove("open");
  if (doc && at !== null && at < doc.length) choose(at, false); else { closePanel(); remember(); }
}

function drawTokens(until) {
  const doc = state.doc, place = byId("tokens"), matches = new Set(state.matches || []);
  if (!doc || state.drawn >= doc.length) return;
  watch.disconnect();
  const fragment = document.createDocumentFragment();
  const end = Math.min(doc.length, until);
  for (let at = state.drawn; at < end; at++) {
    const entropy = doc.entropy[at], position = doc.details.get(at);
    const heat = entropy === null ? 0 : [entropy < 100 ? 0 : 1, 2, 3, entropy < 2000 ? 4 : 5][Number(doc.level[at])];
    let mark = "";
    if (position) {
      const after = right(position, "after", "reasoning");
      mark = after !== null ? (after ? " right" : " wrong") : position.rollouts.length ? " rolled" : "";
    }
    const token = el("span", `token h${heat}${mark}${matches.has(at) ? " match" : ""}`, ...spelled(doc.token(at), false));
    if (decoder.decode(doc.token(at)).includes("\n")) token.prepend(el("span", "dot", "↵"));
    token.dataset.at = at;
    token.tabIndex = at === 0 ? 0 : -1;
    token.setAttribute("role", "button");
    if (entropy !== null) token.title = `${nats(entropy)} nats`;
    fragment.append(token);
  }
  place.append(fragment);
  state.drawn = end;
  if (end < doc.length) watch.observe(place.lastElementChild);
}

function tokenAt(at) {
  drawTokens(Math.ceil((at + 1) / CHUNK) * CHUNK);
  return byId("tokens").children[at];
}

function choose(at, focus = true) {
  for (const old of byId("tokens").querySelectorAll(".chosen, [tabindex='0']")) { old.classList.remove("chosen"); old.tabIndex = -1; }
  const token = tokenAt(at);
  token.classList.add("chosen");
  token.tabIndex = 0;
  state.at = at;
  drawPanel();
  if (focus) token.focus({ preventScroll: true });
  token.scrollIntoView({ block: "nearest" });
  remember();
}

function jump(by) { // to the next or previous match; without a filter, to the next token that there is something to say of
  const found = state.matches || (state.doc ? state.doc.positions.map((position) => position.at) : []);
  const here = state.at === null ? (by > 0 ? -1 : Infinity) : state.at;
  const next = by > 0 ? found.find((at) => at > here) : found.filter((at) => at < here).pop();
  if (next !== undefined) return choose(next);
  const index = state.shown.findIndex((row) => row.doc === state.doc);
  if (index + by < 0 || index + by >= state.shown.length) return;
  step(by);
  const there = state.matches || state.doc.positions.map((position) => position.at);
  if (there.length) choose(by > 0 ? there[0] : there[there.length - 1]);
}

// --- one token ----------------------------------------------------------------------------------------------------------

function facts(pairs) {
  const list = el("dl", "facts");
  for (const [name, ...value] of pairs) list.append(el("dt", "", name), el("dd", "", ...value));
  return list;
}

function drawPanel() {
  const { doc, at } = state, panel = byId("panel"), position = doc.details.get(at), bytes = doc.token(at), start = doc.starts[at];
  const close = el("button", "", "Close");
  close.type = "button";
  close.addEventListener("click", () => { const token = tokenAt(at); closePanel(); token.focus(); });
  const parts = [el("div", "head", el("h2", "", chip(...spelled(bytes, true))), close)];
  const about = [["place", `token ${at + 1} of ${doc.length}, bytes ${start} to ${start + bytes.length - 1}`], ["bytes", el("code", "", hex(bytes) || "none")]];
  const whole = characterAround(doc, at);
  if (whole) about.push(["part of", ...whole]);
  parts.push(facts(about));
  if (doc.entropy[at] === null) parts.push(el("p", "muted", "No entropy: the first token of a document has no context."));
  else parts.push(facts(scored(doc, at, position)));
  const from = Math.max(start - AROUND, position ? position.from : 0);
  const upTo = doc.starts[Math.min(doc.length, at + 60)];
  const context = el("pre", "", from > 0 ? "…" : "", ...shown(decoder.decode(doc.data.subarray(backTo(doc.data, from), start))),
                     el("mark", "", ...spelled(bytes, true)), ...spelled(doc.data.subarray(start + bytes.length, upTo), false), upTo < doc.data.length ? "…" : "");
  parts.push(el("h3", "", "Context, token, true continuation"), context);
  if (position) {
    if (position.predictions.length) parts.push(el("h3", "", "Predictions"), ...predictions(position));
    if (position.rollouts.length) parts.push(el("h3", "", "Rollouts in training"), ...rollouts(position));
  }
  if (!position || !(position.predictions.length || position.rollouts.length))
    parts.push(el("p", "muted", "No model was asked to predict this token."));
  panel.replaceChildren(...parts);
  panel.scrollTop = 0;
  panel.classList.add("open");
  document.body.classList.add("reading");
}

function backTo(data, place) { // the beginning of the character that holds this byte
  while (place > 0 && continues(data[place])) place--;
  return place;
}

function characterAround(doc, at) { // what a token without a whole character is part of
  const data = doc.data, start = doc.starts[at], end = doc.starts[at + 1];
  const begin = backTo(data, start);
  if (begin === start && wholeEnd(data.subarray(start, end)) === end - start) return null;
  const lead = begin < start ? begin : start + wholeEnd(data.subarray(start, end));
  let stop = lead + 1;
  while (stop < data.length && continues(data[stop])) stop++;
  return [chip(decoder.decode(data.subarray(lead, stop))), ` (${hex(data.subarray(lead, stop))}), a character that tokens share`];
}

function scored(doc, at, position) {
  const entropy = el("meter");
  Object.assign(entropy, { min: 0, max: 2773, value: doc.entropy[at], title: "of ln 16 = 2.773" });
  const level = LEVELS[Number(doc.level[at])], top = DATA.vocabulary[doc.top[at]];
  const first = top === undefined ? el("span", "muted", "unknown") : top.length > 1 ? el("span", "bytes", top[1]) : said(top[0]);
  const rows = [["entropy", `${nats(doc.entropy[at])} nats`, entropy, ` ${level}`]];
  if (doc.filter) rows.push(["by the filter", `${nats(doc.filter[at])} nats`]);
  rows.push(["likelihood", `${(100 * Math.exp(-doc.nll[at] / 1000)).toPrecision(3)} % (nll ${nats(doc.nll[at])} nats)`],
            ["rank", doc.rank[at] === 0 ? "0: the scorer's first choice" : `${doc.rank[at]} (0 is its first choice)`], ["scorer's choice", first]);
  if (!position) return rows;
  rows.push(["sample", position.sample || "none"], ["winnable", position.winnable ? "yes" : "no: its boxed text cannot earn the reward"],
            ["prompt", `${position.prompt} tokens` + (position.from ? `, from byte ${position.from}` : "")]);
  return rows;
}

function answer(text) { // a response: the thought, then what follows it
  const end = text.lastIndexOf("</think>");
  if (end < 0) return [el("pre", "", ...shown(text))];
  return [el("pre", "", ...shown(text.slice(0, end))), el("pre", "", ...shown(text.slice(end)))];
}

const MODES = ["standard", "reasoning", "no_thought"];

function predictions(position) { // a table of model by mode, then every thought
  const body = el("tbody"), thoughts = [];
  DATA.models.forEach((model, index) => {
    const name = model.name + (model.step && model.parts.includes("after") ? `, step ${model.step}` : "");
    const cells = MODES.map((mode) => {
      const cell = el("td");
      for (const [, , prediction, correct, response, matched, length, finish] of position.predictions.filter((row) => row[0] === index && row[1] === mode)) {
        cell.append(el("div", "", sign(correct), " ", said(prediction), matched > 1 ? el("span", "muted", ` ${matched} tokens`) : null));
        if (response !== null) thoughts.push(el("details", "thought", el("summary", "", `${name}, ${mode.replace("_", " ")} `, verdict(correct),
          el("span", "muted", ` ${length} tokens, ${finish}`)), ...answer(response)));
      }
      return cell;
    });
    if (cells.some((cell) => cell.hasChildNodes())) body.append(el("tr", "", el("td", "", name), ...cells));
  });
  const head = el("tr", "", ...["model", "standard", "reasoning", "no thought"].map((text) => el("th", "", text)));
  return [el("div", "scroll", el("table", "", el("thead", "", head), body)), ...thoughts];
}

function rollouts(position) {
  const bySteps = new Map();
  for (const row of position.rollouts) bySteps.set(row[0], [...(bySteps.get(row[0]) || []), row]);
  return [...bySteps].flatMap(([number, rows]) => {
    const good = rows.filter((row) => row[1] > 0).length, mean = rows.reduce((sum, row) => sum + row[1], 0) / rows.length;
    const head = el("p", "", el("b", "", `step ${number}`), ` ${good} of ${rows.length} rewarded, mean ${mean.toFixed(2)}` + (rows[0][6] ? "" : ", not in the update"));
    return [head, ...rows.map(([, reward, prediction, response, length, finish]) => el("details", "rollout",
      el("summary", "", el("span", reward > 0 ? "yes" : "no", reward > 0 ? "✓ rewarded" : "✗ no reward"), ` ${reward.toFixed(2)} `, said(prediction), el("span", "muted", ` ${length} tokens, ${finish}`)),
      ...answer(response)))];
  });
}

function closePanel() {
  state.at = null;
  for (const old of byId("tokens").querySelectorAll(".chosen")) old.classList.remove("chosen");
  byId("panel").classList.remove("open");
  document.body.classList.remove("reading");
  byId("panel").replaceChildren(el("p", "muted", "Choose a token: its bytes and context, what each model predicted there, and the rollouts of training."));
  remember();
}

// --- the page -----------------------------------------------------------------------------------------------------------

function remember() { // the place in the address, so that it can be sent to somebody
  const place = state.doc ? `#${state.doc.id}` + (state.at === null ? "" : `/${state.at}`) : "#";
  try { history.replaceState(null, "", place); } catch { /* an address that may not change */ }
}

function goToAddress() {
  const [id, at] = location.hash.slice(1).split("/");
  const row = state.shown.find((one) => one.doc.id === id);
  if (row) openDocument(row, at === undefined ? null : Number(at));
  return Boolean(row);
}

function view(name) {
  for (const one of ["documents", "curves"]) {
    byId(`${one}-view`).hidden = one !== name;
    byId(`show-${one}`).setAttribute("aria-pressed", one === name);
  }
  if (name === "documents") drawRows();
}

const scheme = () => document.documentElement.style.colorScheme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
function setScheme(value) {
  if (value) document.documentElement.style.colorScheme = value;
  byId("theme").textContent = scheme() === "dark" ? "Light" : "Dark";
}
function switchScheme() {
  setScheme(scheme() === "dark" ? "light" : "dark");
  try { localStorage.setItem("rpt-scheme", scheme()); } catch { /* storage is shut */ }
}

function onKey(event) {
  const typing = event.target.matches("input, select, textarea");
  if (event.key === "Escape") {
    if (typing) event.target.blur();
    else if (byId("list").classList.contains("open")) byId("list").classList.remove("open");
    else if (state.at !== null) { const token = tokenAt(state.at); closePanel(); token.focus({ preventScroll: true }); }
    return;
  }
  if (typing || event.ctrlKey || event.metaKey || event.altKey || byId("help").open) return;
  const token = event.target.closest(".token"), inList = event.target === byId("list");
  const actions = {
    "/": () => byId("search").focus(), "?": () => byId("help").showModal(), d: switchScheme,
    j: () => step(1), k: () => step(-1), n: () => jump(1), p: () => jump(-1),
    ...(inList && { ArrowDown: () => step(1), ArrowUp: () => step(-1), Enter: () => (byId("tokens").querySelector("[tabindex='0']") || byId("reader")).focus() }),
    ...(token && { ArrowRight: () => move(Number(token.dataset.at) + 1), ArrowLeft: () => move(Number(token.dataset.at) - 1),
                   Enter: () => choose(Number(token.dataset.at)), " ": () => choose(Number(token.dataset.at)) }),
  };
  if (actions[event.key]) { event.preventDefault(); actions[event.key](); }
}

function move(at) {
  if (at < 0 || at >= state.doc.length) return;
  if (state.at !== null) return choose(at);
  for (const old of byId("tokens").querySelectorAll("[tabindex='0']")) old.tabIndex = -1;
  const token = tokenAt(at);
  token.tabIndex = 0;
  token.focus();
}

function fill(name, first, entries) {
  byId(name).replaceChildren(...[["", first], ...entries].map(([value, text]) => { const option = el("option", "", text); option.value = value; return option; }));
  byId(name).addEventListener("change", filter);
}

function legend() {
  const colours = [["h0", "entropy up to 0.1"], ["h1", "0.5"], ["h2", "1.0"], ["h3", "1.5"], ["h4", "2.0"], ["h5", "2.77 nats"]];
  const signs = [["right", "right after RPT"], ["wrong", "wrong after RPT"], ["rolled", "rolled out in training"]];
  byId("legend").replaceChildren(...colours.map(([name, text]) => el("span", "", el("b", name, text))), ...signs.map(([name, text]) => el("span", "", el("b", name, "abc"), ` ${text}`)));
}

function start() {
  const splits = [...new Set(DOCS.map((doc) => doc.split))].sort();
  fill("split", "every split", splits.map((split) => [split, split]));
  fill("level", "every token", Object.entries(ENTROPIES).map(([name, [text]]) => [name, text]));
  fill("outcome", "any outcome", Object.entries(OUTCOMES).map(([name, [text]]) => [name, text]));
  byId("search").addEventListener("input", filter);
  byId("clear").addEventListener("click", () => { for (const name of ["search", "split", "level", "outcome"]) byId(name).value = ""; filter(); });
  byId("list").addEventListener("scroll", () => requestAnimationFrame(drawRows), { passive: true });
  byId("rows").addEventListener("click", (event) => { const row = event.target.closest(".row"); if (row) openDocument(state.shown[Number(row.dataset.index)]); });
  byId("tokens").addEventListener("click", (event) => { const token = event.target.closest(".token"); if (token) choose(Number(token.dataset.at)); });
  byId("open-list").addEventListener("click", () => { byId("list").classList.toggle("open"); drawRows(); byId("list").focus(); });
  byId("previous").addEventListener("click", () => jump(-1));
  byId("next").addEventListener("click", () => jump(1));
  byId("show-documents").addEventListener("click", () => view("documents"));
  byId("show-curves").addEventListener("click", () => view("curves"));
  byId("show-help").addEventListener("click", () => byId("help").showModal());
  byId("theme").addEventListener("click", switchScheme);
  document.addEventListener("keydown", onKey);
  addEventListener("hashchange", goToAddress);
  addEventListener("resize", drawRows);
  let saved = null;
  try { saved = localStorage.getItem("rpt-scheme"); } catch { /* storage is shut */ }
  setScheme(saved);
  legend();
  const address = location.hash;
  filter();
  if (address.length > 1) { try { history.replaceState(null, "", address); } catch { location.hash = address; } goToAddress(); }
}

start();
