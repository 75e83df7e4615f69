"use strict";
/* Rows, means and small helpers. Everything comes from the JSON in the page; nothing is ever fetched. */
const DATA = JSON.parse(document.getElementById("data").textContent);

function unpack(kind) {
  const { columns, rows } = DATA[kind + "s"];
  return rows.map((values, index) => {
    const row = { kind, index };
    columns.forEach((name, place) => { row[name] = values[place]; });
    if (kind === "merge") {
      row.label = row.realign === "none" ? row.method : `${row.method} + ${row.realign}`;
      if (row.lora) row.label += ` (${row.lora})`;
    }
    return row;
  });
}

const MERGES = unpack("merge"), TRAINS = unpack("train");
const isControl = (row) => DATA.controls.includes(row.method.split("(")[0]);
const CONTROL_OF = new Map(MERGES.map((row) => [row.label, isControl(row)]));
const METHODS = [...CONTROL_OF.keys()].sort((a, b) =>
  (a !== DATA.studyMethod) - (b !== DATA.studyMethod) || CONTROL_OF.get(a) - CONTROL_OF.get(b) || a.localeCompare(b));
const RANKS = [...new Set([...MERGES, ...TRAINS].map((row) => row.rank))].sort((a, b) => a - b);

const unique = (values) => [...new Set(values)];
const sorted = (values) => unique(values).sort((a, b) => (typeof a === "number" ? a - b : String(a).localeCompare(b)));
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
const known = (value) => value !== null && value !== undefined;

function deviation(values) {
  if (values.length < 2) return 0;
  const middle = mean(values);
  return Math.sqrt(values.reduce((sum, value) => sum + (value - middle) ** 2, 0) / (values.length - 1));
}

function groups(rows, key) {
  const found = new Map();
  for (const row of rows) {
    const name = key(row);
    if (!found.has(name)) found.set(name, []);
    found.get(name).push(row);
  }
  return found;
}

/** Mean of a column of some rows, with the rows that have it; null of none. */
function summary(rows, column) {
  const used = rows.filter((row) => known(row[column]));
  if (!used.length) return null;
  const values = used.map((row) => row[column]);
  return { value: mean(values), deviation: deviation(values), rows: used };
}

const partner = (row) => row.set.split("+").find((name) => name !== row.task);

function number(value, digits = 4) {
  if (!known(value)) return "";
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value) && Math.abs(value) < 1e6) return String(value);
  return Math.abs(value) >= 1e6 || (value !== 0 && Math.abs(value) < 1e-3) ? value.toExponential(2) : value.toFixed(digits);
}

function element(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) if (known(value)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

function shape(name, attributes = {}, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) if (known(value)) node.setAttribute(key, value);
  if (known(text)) node.textContent = text;
  return node;
}

const tip = document.getElementById("tip");
function showTip(text, x, y) {
  tip.textContent = text;
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(x + 12, innerWidth - box.width - 6))}px`;
  tip.style.top = `${y + 16 + box.height > innerHeight ? y - box.height - 10 : y + 16}px`;
}

/** Makes a mark say its text when pointed at or focused, and open its sources when clicked. */
function interactive(mark, text, rows, focusable = true) {
  mark.classList.add("mark");
  mark.setAttribute("aria-label", text);
  mark.addEventListener("pointermove", (event) => showTip(text, event.clientX, event.clientY));
  mark.addEventListener("pointerleave", () => { tip.hidden = true; });
  const open = () => showDetails(text.split("\n")[0], rows);
  mark.addEventListener("click", open);
  if (!focusable) return mark;
  mark.setAttribute("tabindex", "0");
  mark.setAttribute("role", "button");
  mark.addEventListener("keydown", (event) => { if (event.key === "Enter") open(); });
  mark.addEventListener("focus", () => { const box = mark.getBoundingClientRect(); showTip(text, box.right, box.bottom); });
  mark.addEventListener("blur", () => { tip.hidden = true; });
  return mark;
}

/* Where a number comes from. */
const details = document.getElementById("details");
document.getElementById("close").addEventListener("click", () => details.close());
details.addEventListener("click", (event) => { if (event.target === details) details.close(); });

const SHOWN_ROW = {
  merge: ["data", "backbone", "set", "method", "realign", "rank", "lora", "seed", "task", "metric", "score", "single", "head_only", "control", "retention", "predicted", "images", "seconds"],
  train: ["data", "backbone", "task", "rank", "lora", "seed", "metric", "score", "epochs", "seconds"],
};

function definitions(pairs) {
  const list = element("dl");
  for (const [name, value] of pairs) list.append(element("dt", {}, name), element("dd", {}, value));
  return list;
}

function originOf(row) {
  const origin = DATA.origins[row.origin], { config, without = [], ...facts } = origin;
  const text = (value) => (typeof value === "object" ? Object.entries(value).map(([a, b]) => `${a} ${b}`).join(", ") : String(value));
  const pairs = ["run", "hash", "commit", "data_fingerprint", "backbone_fingerprint"]
    .filter((name) => known(row[name]) && !known(facts[name])).map((name) => [name, String(row[name])]);
  const block = element("details", {}, element("summary", {}, facts.run || facts.file),
    definitions([...pairs, ...Object.entries(facts).map(([name, value]) => [name.replace("_", " "), text(value)])]));
  if (config) {
    const whole = { ...DATA.config, ...config };
    const lines = Object.keys(whole).filter((key) => !without.includes(key))
      .sort().map((key) => `${key}: ${JSON.stringify(whole[key])}`);
    block.append(element("details", {}, element("summary", {}, "config"), element("pre", {}, lines.join("\n"))));
  }
  return block;
}

function showDetails(title, rows) {
  document.getElementById("details-title").textContent = title;
  const body = document.getElementById("details-body");
  body.replaceChildren();
  if (rows.length) {
    const columns = (SHOWN_ROW[rows[0].kind] || []).filter((name) => rows.some((row) => known(row[name])));
    if (columns.length) body.append(element("div", { class: "scroll" }, plainTable(columns, rows.slice(0, 100))));
    body.append(element("h3", {}, rows.length > 1 ? "Sources" : "Source"));
    const origins = [...groups(rows, (row) => row.origin).values()].map((same) => same[0]);
    for (const row of origins.slice(0, 60)) body.append(originOf(row));
    if (origins.length > 60) body.append(element("p", { class: "none" }, `and ${origins.length - 60} more`));
    if (origins.length === 1) body.querySelector("details").open = true;
  }
  tip.hidden = true;
  if (!details.open) details.showModal();
  details.scrollTop = 0;
}

function plainTable(columns, rows) {
  const head = element("tr", {}, ...columns.map((name) => element("th", {}, name.replace("_", " "))));
  const lines = rows.map((row) => element("tr", {}, ...columns.map((name) =>
    element("td", { class: typeof row[name] === "number" ? "n" : null }, number(row[name])))));
  return element("table", {}, element("thead", {}, head), element("tbody", {}, ...lines));
}
