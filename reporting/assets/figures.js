/* The figures. Each takes the filtered rows and the width, and returns nodes; none when there is nothing to draw. */
const choice = { cost: "seconds", allPairs: false, allCurves: false, allRefinements: false };
const FIRST_PANELS = 8, FIRST_CURVES = 12;
const lookOf = (label) => style(METHODS.indexOf(label));
const rankLook = (rank) => style(RANKS.indexOf(rank));
const methodsOf = (rows) => METHODS.filter((label) => rows.some((row) => row.label === label));

function pairFigure({ kept }, width) {
  const rows = kept.filter((row) => row.tasks === 2);
  if (!rows.length) return [];
  const panels = [...groups(rows, (row) => `${row.label}, rank ${row.rank}`).entries()]
    .sort(([, [a]], [, [b]]) => METHODS.indexOf(a.label) - METHODS.indexOf(b.label) || a.rank - b.rank);
  const tasks = sorted(rows.map((row) => row.task));
  const cells = panels.map(([name, members]) => {
    const found = groups(members, (row) => `${row.task} ${partner(row)}`);
    return [name, (a, b) => summary(found.get(`${a} ${b}`) || [], "retention")];
  });
  const reach = reachOf(cells.flatMap(([, cell]) => tasks.flatMap((a) => tasks.map((b) => cell(a, b)))).filter(known).map((item) => item.value));
  const shown = choice.allPairs ? cells : cells.slice(0, FIRST_PANELS);
  const each = width < 700 ? width : Math.min(width, Math.max(300, width / Math.min(3, Math.max(1, Math.min(shown.length, Math.floor(width / 330)))) - 24));
  const list = element("div", { class: "panels" }, ...shown.map(([name, cell]) => element("div", { class: "panel" }, element("b", {}, name),
    heatmap({ title: `Retention of pairs, ${name}`, rows: tasks, columns: tasks, cell, reach, width: each,
      rowLabel: (a, b) => `${a}, merged with ${b}: ${name}` }))));
  return [scaleLegend(reach), list, ...more("allPairs", cells.length, FIRST_PANELS)];
}

/** A button that shows all of what is cut down to the first ones. */
function more(key, count, first) {
  if (count <= first) return [];
  const button = element("button", { type: "button", "data-all": key }, choice[key] ? "fewer" : `all ${count}`);
  button.addEventListener("click", () => { choice[key] = !choice[key]; draw(); });
  return [button];
}

function methodFigure({ kept }, width) {
  if (!kept.length) return [];
  const tasks = sorted(kept.map((row) => row.task)), byMethod = groups(kept, (row) => row.label);
  const found = groups(kept, (row) => `${row.label}|${row.task}`);
  const cell = (label, task) => summary(task === "all" ? byMethod.get(label) : found.get(`${label}|${task}`) || [], "retention");
  const sets = new Map([...byMethod].map(([label, rows]) => [label, unique(rows.map((row) => row.set)).length]));
  const order = methodsOf(kept).sort((a, b) => sets.get(b) - sets.get(a) || cell(b, "all").value - cell(a, "all").value);
  const reach = reachOf(order.flatMap((label) => tasks.map((task) => cell(label, task))).filter(known).map((item) => item.value));
  return [scaleLegend(reach), heatmap({ title: "Retention by method and task", rows: order, columns: [...tasks, "all"], cell, reach, width,
    rowLabel: (label, task) => `${label}: ${task === "all" ? "all tasks" : task}` })];
}

/** Of one method's rows those of tasks in sets measured at the same values of a column: as `alike` in summaries.py. */
function alike(rows, column) {
  const byTask = [...groups(rows, (row) => [row.backbone, row.data, row.set, row.task].join("|")).values()];
  const valuesOfTask = byTask.map((some) => sorted(some.map((row) => row[column])));
  const lists = [...groups(valuesOfTask, (values) => values.join("|")).values()].sort((a, b) => b[0].length - a[0].length || b.length - a.length);
  const best = lists.length ? lists[0][0] : [];
  return byTask.filter((_, place) => best.every((value) => valuesOfTask[place].includes(value))).flat().filter((row) => best.includes(row[column]));
}

/** A line per method: mean retention against a column, the bars one standard deviation. Longest lines first, then best. */
function methodCurve(column, xLabel, title) {
  return ({ kept }, width) => {
    const byMethod = groups(kept, (row) => row.label);
    if (column !== "tasks") for (const [label, rows] of byMethod) byMethod.set(label, alike(rows, column));
    const measured = [...byMethod].map(([label, rows]) => ({ label, length: new Set(rows.map((row) => row[column])).size, kept: mean(rows.map((row) => row.retention)) }));
    const order = measured.sort((a, b) => b.length - a.length || b.kept - a.kept).map(({ label }) => label);
    const first = new Set(choice.allCurves ? order : order.slice(0, FIRST_CURVES));
    const shown = methodsOf(kept).filter((label) => first.has(label));
    const look = METHODS.length <= LOOKS ? lookOf : (label) => style(shown.indexOf(label));
    const series = shown.map((label) => {
      const mine = groups(byMethod.get(label), (row) => row[column]);
      const points = [...mine.entries()].sort(([a], [b]) => a - b).map(([x, rows]) => {
        const { value, deviation: spread, rows: used } = summary(rows, "retention");
        return { x, y: value, low: value - spread, high: value + spread, rows: used,
          text: `${label}, ${xLabel} ${x}\n${value.toFixed(4)} ± ${spread.toFixed(4)}, ${used.length} rows` };
      });
      return { name: label, look: look(label), line: true, points };
    });
    if (!series.length) return [];
    const drawn = plot({ title, series, xKind: "band", xLabel, yLabel: "retention", width, one: true, height: 330 });
    return [drawn, ...more("allCurves", order.length, FIRST_CURVES)];
  };
}

/** Panels, one a task: score against rank of the adapters alone, a line for each way of training them. */
function aloneFigure({ alone }, width) {
  const panels = [...groups(alone, (row) => `${row.task}, ${row.metric}`).entries()].sort(([a], [b]) => a.localeCompare(b));
  if (!panels.length) return [];
  const each = width < 620 ? width : Math.floor((width - 44) / 3);
  return [element("div", { class: "panels" }, ...panels.map(([name, rows]) => {
    const places = groups(rows, (row) => `${row.data}, ${row.backbone}${row.lora ? ` (${row.lora})` : ""}`);
    const series = [...places.entries()].map(([place, mine], index) => ({
      name: place, look: style(index), line: true,
      points: [...groups(mine, (row) => row.rank).entries()].sort(([a], [b]) => a - b).map(([rank, same]) => {
        const { value, deviation: spread, rows: used } = summary(same, "score"), scores = used.map((row) => row.score);
        const several = unique(used.map((row) => row.seed)).length < used.length; // they differ in more than the seed
        const [low, high] = several ? [Math.min(...scores), Math.max(...scores)] : [value - spread, value + spread];
        const told = several ? `${number(low)} to ${number(high)}, ${used.length} settings` : `${number(value)} ± ${number(spread)}, ${used.length} runs`;
        return { x: rank, y: several ? (low + high) / 2 : value, low, high, rows: used,
          text: `${name}, ${rank ? `rank ${rank}` : "head only"} (${place})\n${told}` };
      }),
    }));
    return element("div", { class: "panel" }, element("b", {}, name, DATA.higher[rows[0].metric] === false ? " (lower is better)" : ""),
      plot({ title: name, series, xKind: "band", xLabel: "rank (0: head only)", yLabel: rows[0].metric, width: each, height: 200 }));
  }))];
}

/** Of points those that were measured on just the same sets and seeds; of several such groups the one with most sets. */
function widest(points) {
  const measured = groups(points, (point) => [...new Set(point.rows.map((row) => `${row.set} ${row.seed}`))].sort().join("|"));
  const size = (group) => [group.length > 1, new Set(group[0].rows.map((row) => `${row.set} ${row.seed}`)).size, group.length];
  const larger = (a, b) => { const place = a.findIndex((value, index) => value !== b[index]); return place >= 0 && a[place] > b[place]; };
  return [...measured.values()].reduce((best, group) => (!best.length || larger(size(group), size(best)) ? group : best), []);
}

function costFigure({ kept }, width) {
  const column = choice.cost, isIdle = (row) => row.method === "frozen" && row.realign === "none"; // merges nothing: what seconds it has are chance
  const counts = (row) => known(row[column]) && !isIdle(row);
  const made = groups(kept.filter(counts), (row) => `${row.label}|${row.rank}`);
  const points = [...made.values()].map((rows) => {
    const { label, rank } = rows[0], cost = summary(rows, column).value, { value, deviation: spread, rows: used } = summary(rows, "retention");
    return { x: cost, y: value, label, rank, rows: used, text: `${label}, rank ${rank}\n${number(cost)} ${column}, retention ${value.toFixed(4)} ± ${spread.toFixed(4)}` };
  });
  if (!points.length) return [];
  const front = [], merges = points.filter((point) => !isControl(point.rows[0]));
  for (const point of [...widest(merges)].sort((a, b) => a.x - b.x || b.y - a.y)) if (!front.length || point.y > front[front.length - 1].y) front.push(point);
  const many = METHODS.length > LOOKS; // then looks would repeat: only what nothing beats is named
  const named = many ? [...new Set(front.map((point) => point.label))] : METHODS, shown = many ? front : points;
  const ranks = sorted(shown.map((point) => point.rank)); // a colour per method, a shape per rank
  const lookOfPoint = (place, rank) => ({ ...style(place), shape: SHAPES[(ranks.indexOf(rank) + ranks.length * Math.floor(place / 8)) % SHAPES.length] });
  const series = named.flatMap((label, place) => ranks.map((rank) => ({
    name: `${label}, r=${rank}`, look: lookOfPoint(place, rank), points: shown.filter((point) => point.label === label && point.rank === rank) })));
  if (many) series.unshift({ name: "others", look: { color: "var(--soft)", shape: "ring", dash: "" }, points: points.filter((point) => !front.includes(point)) });
  const xKind = points.every((point) => point.x > 0) ? "log" : "linear";
  const caption = element("p", { class: "caption" }, front.length ? `Of merges measured on the same sets and seeds nothing is both cheaper and better than: ${front.map((point) => `${point.label}, r=${point.rank}`).join("; ")}.` : "");
  return [plot({ title: "Cost against retention", series: series.filter((item) => item.points.length), xKind, xLabel: column, yLabel: "retention", width, one: true, front, size: 5, height: 330 }), caption];
}

function ranksOfValues(values) {
  const order = values.map((value, place) => [value, place]).sort(([a], [b]) => a - b);
  const found = new Array(values.length);
  for (let start = 0; start < order.length;) {
    let end = start;
    while (end < order.length && order[end][0] === order[start][0]) end += 1;
    for (let place = start; place < end; place += 1) found[order[place][1]] = (start + end - 1) / 2;
    start = end;
  }
  return found;
}

function correlation(a, b) {
  const x = ranksOfValues(a), y = ranksOfValues(b), mx = mean(x), my = mean(y);
  const cross = x.reduce((sum, value, place) => sum + (value - mx) * (y[place] - my), 0);
  return cross / Math.sqrt(x.reduce((sum, value) => sum + (value - mx) ** 2, 0) * y.reduce((sum, value) => sum + (value - my) ** 2, 0));
}

function advisorFigure({ kept }, width) {
  const rows = kept.filter((row) => known(row.predicted));
  if (!rows.length) return [];
  const series = methodsOf(rows).map((label) => ({ name: label, look: lookOf(label), points: rows.filter((row) => row.label === label).map((row) => ({
    x: row.retention, y: row.predicted, low: known(row.low) && known(row.high) ? row.low : null, high: row.high, rows: [row],
    text: `${row.task} in ${row.set}, ${label}, rank ${row.rank}\nmeasured ${row.retention.toFixed(4)}, predicted ${row.predicted.toFixed(4)}` })) }));
  const off = mean(rows.map((row) => Math.abs(row.predicted - row.retention)));
  const bounded = rows.filter((row) => known(row.low) && known(row.high));
  const inside = bounded.filter((row) => row.low <= row.retention && row.retention <= row.high).length;
  const rho = correlation(rows.map((row) => row.retention), rows.map((row) => row.predicted));
  const order = rows.length > 2 && Number.isFinite(rho) ? `; rank correlation ${rho.toFixed(2)}` : "";
  const text = `${rows.length} predictions, off by ${off.toFixed(3)} on average${bounded.length ? `; ${Math.round((100 * inside) / bounded.length)} % of ${bounded.length} measurements lie in the predicted interval` : ""}${order}.`;
  return [plot({ title: "Advisor's prediction against measurement", series, xLabel: "measured retention", yLabel: "predicted retention", width, diagonal: true, size: 3, height: 330 }), element("p", { class: "caption" }, text)];
}

function refinementFigure({ refinements }, width) {
  const shown = choice.allRefinements ? refinements : refinements.slice(0, FIRST_CURVES);
  if (!shown.length) return [];
  const series = shown.map((item, place) => ({
    name: String(place), legend: `${item.set}, r=${item.rank}, seed ${item.seed}`, look: style(place), line: true, rows: [{ ...item, kind: "curve" }],
    text: `${item.set}\n${item.method}, rank ${item.rank}, seed ${item.seed} (${item.data})\nlast: ${number(item.points[item.points.length - 1][1])}`,
    points: item.points.map(([x, y]) => ({ x, y })),
  }));
  const drawn = plot({ title: "Retention against seconds of refinement", series, xLabel: "seconds", yLabel: "expected retention", width, one: true, height: 330, marks: false });
  return [drawn, ...more("allRefinements", refinements.length, FIRST_CURVES)];
}

function trainingFigure({ curves }, width) {
  const panels = [...groups(curves, (item) => `${item.task}, ${item.metric}`).entries()].sort(([a], [b]) => a.localeCompare(b));
  if (!panels.length) return [];
  const each = width < 620 ? width : Math.floor((width - 44) / 3);
  return [element("div", { class: "panels" }, ...panels.map(([name, items]) => {
    const series = items.map((item) => {
      const row = { ...item, kind: "curve" };
      return { name: String(item.origin), legend: item.rank ? `rank ${item.rank}` : "head only", look: { ...rankLook(item.rank) }, line: true, rows: [row],
        text: `${item.task}, ${item.rank ? `rank ${item.rank}` : "head only"}, seed ${item.seed} (${item.data})\nlast epoch: ${number(item.points[item.points.length - 1][1])}`,
        points: item.points.map(([x, y]) => ({ x, y })) };
    }).sort((a, b) => a.legend.localeCompare(b.legend, undefined, { numeric: true }));
    return element("div", { class: "panel" }, element("b", {}, name),
      plot({ title: `Validation ${name}`, series, xLabel: "epoch", yLabel: items[0].metric, width: each, height: 200, marks: false }));
  }))];
}

/** Points of a face are drawn on the picture: ring = target, dot = single, cross = merged. */
function exampleFigure({ examples }) {
  if (!examples.length) return [];
  const isPoints = (value) => Array.isArray(value) && Array.isArray(value[0]);
  const text = (value) => (typeof value === "number" ? number(value, 2) : String(value));
  return [element("div", { class: "examples" }, ...examples.map((item) => {
    const frame = element("div", { class: "frame" }, element("img", { src: item.image, alt: `${item.task}: ${isPoints(item.target) ? "a face" : text(item.target)}` }));
    const lines = element("figcaption", {}, element("b", {}, item.task));
    const kinds = [["target", "var(--s2)", "ring"], ["single", "var(--s0)", "circle"], ["merged", "var(--s1)", "cross"]];
    if (isPoints(item.target)) {
      const overlay = shape("svg", { viewBox: "0 0 100 100", preserveAspectRatio: "none" });
      for (const [name, color, kind] of kinds) {
        if (isPoints(item[name])) for (const [x, y] of item[name]) overlay.append(symbol(kind, 100 * x, 100 * y, 0.9, color));
      }
      frame.append(overlay);
      lines.append(element("div", {}, "○ target, ● alone, ✕ merged"));
    } else {
      for (const [name, , ] of kinds) {
        if (!known(item[name])) continue;
        const wrong = name !== "target" && typeof item.target === "string" && item[name] !== item.target;
        lines.append(element("div", { class: wrong ? "wrong" : null }, `${{ target: "target", single: "alone", merged: "merged" }[name]}: ${text(item[name])}${wrong ? " ✗" : ""}`));
      }
    }
    if (known(item.method)) lines.append(element("div", {}, `${item.method}, ${item.realign || "none"}: ${item.set}`));
    const source = element("button", { type: "button" }, "source");
    source.addEventListener("click", () => showDetails(`Example of ${item.task}`, [{ ...item, kind: "example" }]));
    lines.append(source);
    return element("figure", {}, frame, lines);
  }))];
}

const FIGURES = [
  { id: "pairs", full: true, title: "What a task keeps when merged with one other", draw: pairFigure, merge: true,
    caption: "Row: the task that is scored. Column: the task that it is merged with. Each cell is the mean over seeds of merged score / score alone (inverse for errors)." },
  { id: "methods", title: "Methods by task", draw: methodFigure, merge: true, caption: "Mean retention over all sets, ranks and seeds that the filters leave: methods compare where they were measured on the same sets. Those of the most sets on top, then the best." },
  { id: "tasks", title: "Number of merged tasks", draw: methodCurve("tasks", "merged tasks", "Retention against number of merged tasks"), merge: true, caption: "Mean and standard deviation over sets, tasks and seeds." },
  { id: "ranks", title: "Rank of the merged adapters", draw: methodCurve("rank", "rank", "Retention against rank"), merge: true, caption: "Mean and standard deviation over sets, tasks and seeds; each line is of those that were measured at all of its ranks." },
  { id: "cost", title: "Cost against retention", draw: costFigure, merge: true, pick: ["seconds", "images", "passes"], caption: "One point per method (colour) and rank (shape). The steps join what nothing is both cheaper and better than." },
  { id: "refinement", title: "Refinement", draw: refinementFigure, merge: true, caption: "Retention against seconds of merges that are trained (distill): mean over the members, expected without labels on held-out images." },
  { id: "advisor", title: "Advisor against measurement", draw: advisorFigure, merge: true, caption: "Retention predicted by the code that made each row, and measured after; the interval is meant to hold 90 %." },
  { id: "examples", title: "Examples", draw: exampleFigure, caption: "What the single and the merged model answer." },
  { id: "alone", full: true, title: "Rank of the adapters alone", draw: aloneFigure, caption: "Test score, mean and standard deviation over seeds. Rank 0 is a head on the frozen backbone." },
  { id: "curves", full: true, title: "Training", draw: trainingFigure, caption: "Validation metric by epoch, one line per run." },
];
