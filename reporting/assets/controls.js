/* Filters, the table of rows, themes, and drawing everything anew when one of them changes. */
const COLUMNS = {
  merge: ["data", "backbone", "set", "method", "realign", "rank", "seed", "task", "metric", "score", "single", "head_only", "retention", "images", "seconds"],
  train: ["data", "backbone", "task", "rank", "seed", "metric", "score", "epochs", "seconds"],
};
const FILTERS = ["data", "backbone", "tasks", "method", "realign", "rank", "seed", "metric"];
const FILTER_NAMES = { tasks: "tasks in a set" };
const FIRST_ROWS = 200;
const everything = [...MERGES, ...TRAINS];
const valuesOf = Object.fromEntries(FILTERS.map((name) => [name, sorted(everything.map((row) => row[name]).filter(known))]));

/* Nothing is averaged over backbones unless asked for: the commonest is chosen at first. */
const commonest = [...groups(MERGES.length ? MERGES : TRAINS, (row) => row.backbone)].sort(([, a], [, b]) => b.length - a.length).slice(0, 1).map(([name]) => name);
const atFirst = (name) => new Set(name === "backbone" ? commonest : valuesOf[name]);
const chosen = Object.fromEntries(FILTERS.map((name) => [name, atFirst(name)]));
const isAtFirst = (name) => [...chosen[name]].sort().join() === [...atFirst(name)].sort().join();
for (const item of [...DATA.refinements, ...DATA.examples]) if (known(item.set)) item.tasks = item.set.split("+").length;
const table = { kind: MERGES.length ? "merge" : "train", column: null, down: true, all: false };

/* Accuracy and F1 of one task are two rows: unless asked for, figures take each task's own metric. */
let ownMetric = true;
const isOwn = (row) => row.metric === DATA.primary[row.task];

/* A filter that leaves all of the rows' values leaves everything, also curves and examples with a value of no row. */
const isWhole = (name) => chosen[name].size === valuesOf[name].length;
const isChosen = (row, name) => !known(row[name]) || isWhole(name) || chosen[name].has(row[name]);
const passes = (row) => FILTERS.every((name) => (name === "metric" && ownMetric) || isChosen(row, name)) && (!ownMetric || isOwn(row));
const passesAll = (row) => FILTERS.every((name) => isChosen(row, name));

function filtered() {
  const merges = MERGES.filter(passes);
  return { merges, kept: merges.filter((row) => known(row.retention)), alone: TRAINS.filter(passes), curves: DATA.curves.filter(passes), refinements: DATA.refinements.filter(passesAll), examples: DATA.examples.filter(passesAll) };
}

function readAddress() {
  for (const [name, text] of new URLSearchParams(location.hash.slice(1))) {
    if (!chosen[name]) continue;
    const wanted = text.split("|");
    const found = valuesOf[name].filter((value) => wanted.includes(String(value)));
    if (found.length) { chosen[name] = new Set(found); if (name === "metric") ownMetric = false; }
  }
}

function writeAddress() {
  const parts = FILTERS.filter((name) => (name === "metric" ? !ownMetric : !isAtFirst(name)))
    .map((name) => `${name}=${encodeURIComponent([...chosen[name]].join("|"))}`);
  try { history.replaceState(null, "", parts.length ? `#${parts.join("&")}` : location.pathname + location.search); } catch { /* some browsers refuse it for files */ }
}

function filterBox(name) {
  const values = valuesOf[name], summaryNode = element("summary"), choices = element("div", { class: "choices" });
  const box = element("details", { "data-filter": name }, summaryNode, choices);
  const inputs = values.map((value) => {
    const input = element("input", { type: "checkbox", name, value });
    input.addEventListener("change", () => {
      if (name === "metric") ownMetric = false;
      chosen[name] = new Set(values.filter((_, place) => inputs[place].checked));
      changed();
    });
    choices.append(element("label", {}, input, ` ${value}`));
    return input;
  });
  const all = element("button", { type: "button" }, name === "metric" ? "each task's own" : "all");
  all.addEventListener("click", () => {
    if (name === "metric") ownMetric = true;
    chosen[name] = new Set(values);
    changed();
  });
  const none = element("button", { type: "button" }, "none");
  none.addEventListener("click", () => {
    if (name === "metric") ownMetric = false;
    chosen[name] = new Set();
    changed();
  });
  choices.prepend(element("div", { class: "tabs" }, all, none));
  box.refresh = () => {
    const own = name === "metric" && ownMetric, whole = isWhole(name);
    inputs.forEach((input, place) => { input.checked = chosen[name].has(values[place]); });
    const text = own ? "each task's own" : whole ? "all" : [...chosen[name]].join(", ") || "none";
    summaryNode.replaceChildren(`${FILTER_NAMES[name] || name}: `, element("b", {}, text));
    box.classList.toggle("set", name === "metric" ? !own : !whole);
  };
  return box;
}

function chooseAll() {
  ownMetric = true;
  for (const name of FILTERS) chosen[name] = atFirst(name);
}

function buildFilters() {
  const form = document.getElementById("filters");
  if (!everything.length) return;
  for (const name of FILTERS) if (valuesOf[name].length > 1) form.append(filterBox(name));
  const reset = element("button", { type: "button", id: "reset" }, "reset");
  reset.addEventListener("click", () => { chooseAll(); changed(); });
  form.append(reset, element("span", { class: "count", id: "count", role: "status" }));
  form.addEventListener("submit", (event) => event.preventDefault());
  document.addEventListener("click", (event) => form.querySelectorAll("details[open]").forEach((box) => { if (!box.contains(event.target)) box.open = false; }));
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") form.querySelectorAll("details[open]").forEach((box) => { box.open = false; }); });
}

function buildFigures() {
  const place = document.getElementById("figures");
  for (const figure of FIGURES) {
    const head = element("div", { class: "head" }, element("h3", {}, figure.title));
    if (figure.pick) {
      const options = figure.pick.filter((name) => MERGES.some((row) => known(row[name])));
      const select = element("select", { "aria-label": "cost measured in" }, ...options.map((name) => element("option", {}, name)));
      select.addEventListener("change", () => { choice.cost = select.value; draw(); });
      if (options.length) choice.cost = options[0];
      if (options.length > 1) head.append(select);
    }
    figure.node = element("div", { class: "body" });
    place.append(element("section", { class: figure.full ? "figure full" : "figure", id: `figure-${figure.id}` }, head,
      element("p", { class: "caption" }, figure.caption), figure.node));
  }
}

function emptyText(figure, rows) {
  if (figure.id === "examples") return DATA.examples.length ? "Nothing under these filters." : "No run left example pictures.";
  if (figure.id === "curves") return DATA.curves.length ? "Nothing under these filters." : "No training run lies in these folders: python train.py task=galaxy lora.rank=16";
  const all = figure.merge ? MERGES : TRAINS;
  if (all.length && !(figure.merge ? rows.kept : rows.alone).length) return "Nothing under these filters.";
  if (figure.id === "refinement" && MERGES.length) return "No merge was refined: python merge.py tasks=[age_class,galaxy] merge=distill";
  if (figure.id === "advisor" && MERGES.length) return "No merge has a prediction.";
  if (figure.id === "pairs" && MERGES.length) return "No pair was merged.";
  return figure.merge ? "Nothing was merged yet: python merge.py -m sweep=pairs merge=cat lora.rank=16" : "Nothing was trained yet: python train.py -m experiment=table1";
}

function draw() {
  const rows = filtered();
  for (const figure of FIGURES) {
    const nodes = figure.draw(rows, figure.node.clientWidth || 340);
    figure.node.replaceChildren(...(nodes.length ? nodes : [element("p", { class: "none" }, emptyText(figure, rows))]));
  }
  const count = document.getElementById("count");
  if (count) count.textContent = `${rows.merges.length} merged, ${rows.alone.length} alone`;
  drawTable(rows);
}

function drawTable(rows) {
  const list = [...(table.kind === "merge" ? rows.merges : rows.alone)];
  const columns = [...COLUMNS[table.kind], ...["control", "retention_low", "retention_high", "predicted", "low", "high", "passes", "lora"].filter((name) => list.some((row) => known(row[name])))];
  if (table.column) {
    const way = table.down ? 1 : -1, name = table.column;
    list.sort((a, b) => !known(a[name]) - !known(b[name]) || way * (typeof a[name] === "number" ? a[name] - b[name] : String(a[name]).localeCompare(b[name])));
  }
  const head = element("tr", {}, ...columns.map((name) => {
    const sortButton = element("button", { type: "button" }, name.replace("_", " ") + (table.column === name ? (table.down ? " ▲" : " ▼") : ""));
    sortButton.addEventListener("click", () => { table.down = table.column === name ? !table.down : true; table.column = name; drawTable(filtered()); });
    return element("th", { class: list.length && typeof list[0][name] === "number" ? "n" : null, "aria-sort": table.column === name ? (table.down ? "ascending" : "descending") : null }, sortButton);
  }));
  const body = element("tbody");
  for (const row of table.all ? list : list.slice(0, FIRST_ROWS)) {
    const line = element("tr", { tabindex: "0", "data-kind": row.kind, "data-index": row.index }, ...columns.map((name) =>
      element("td", { class: typeof row[name] === "number" ? "n" : null, "data-column": name }, number(row[name]))));
    line.addEventListener("click", () => showDetails(`${row.task}: ${row.metric} ${number(row.score)}`, [row]));
    line.addEventListener("keydown", (event) => { if (event.key === "Enter") line.click(); });
    body.append(line);
  }
  document.getElementById("row-table").replaceChildren(element("table", {}, element("thead", {}, head), body));
  const tabs = document.querySelector("#rows .tabs");
  const kinds = [["merge", `merged (${rows.merges.length})`], ["train", `alone (${rows.alone.length})`]].map(([kind, text]) => {
    const button = element("button", { type: "button", "aria-pressed": table.kind === kind, "data-kind": kind }, text);
    button.addEventListener("click", () => { table.kind = kind; table.column = null; drawTable(filtered()); });
    return button;
  });
  tabs.replaceChildren(...kinds);
  if (list.length > FIRST_ROWS) {
    const more = element("button", { type: "button", id: "all-rows" }, table.all ? `first ${FIRST_ROWS}` : `show all ${list.length}`);
    more.addEventListener("click", () => { table.all = !table.all; drawTable(filtered()); });
    tabs.append(more);
  }
}

function changed() {
  document.querySelectorAll("#filters details").forEach((box) => box.refresh());
  writeAddress();
  draw();
}

function setTheme(name) { document.documentElement.dataset.theme = name; draw(); }

const wantsDark = matchMedia("(prefers-color-scheme: dark)");
document.documentElement.dataset.theme = wantsDark.matches ? "dark" : "light";
wantsDark.addEventListener("change", () => setTheme(wantsDark.matches ? "dark" : "light"));
document.getElementById("theme").addEventListener("click", () => setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"));
document.querySelectorAll("[data-rows]").forEach((button) => button.addEventListener("click", () => {
  const rows = button.dataset.kind === "merge" ? MERGES : TRAINS;
  showDetails(button.dataset.title, button.dataset.rows.split(" ").map((place) => rows[place]));
}));
addEventListener("beforeprint", () => { document.querySelectorAll("details.table").forEach((box) => { box.open = true; }); });
matchMedia("print").addEventListener("change", draw);

addEventListener("hashchange", () => {  // another view's address was opened where the page is open already
  const given = new URLSearchParams(location.hash.slice(1));
  if (!FILTERS.some((name) => given.has(name))) return;
  chooseAll();
  readAddress();
  changed();
});
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();  // the address holds the filters
  document.getElementById("figures").focus();
});

readAddress();
buildFilters();
buildFigures();
changed();
let drawnFor = innerWidth;
addEventListener("resize", () => {
  if (Math.abs(innerWidth - drawnFor) < 8) return;
  drawnFor = innerWidth;
  requestAnimationFrame(draw);
});
