/* Heatmaps and plots as SVG, drawn for the width that there is. */
const isDark = () => document.documentElement.dataset.theme === "dark" && !matchMedia("print").matches;
const SHAPES = ["circle", "square", "diamond", "triangle", "cross", "ring"];
const LOOKS = 24; // that differ
const style = (place) => ({
  color: `var(--s${place % 8})`, shape: SHAPES[place % SHAPES.length], dash: ["", "6 3", "2 3"][Math.floor(place / 8) % 3],
});

/** Colour of a retention: 1.00 is neutral, blue is better, orange is worse; both ends differ in lightness, too. */
function diverging(value, reach) {
  const share = Math.max(-1, Math.min(1, (value - 1) / reach));
  const dark = isDark();
  const middle = dark ? [44, 51, 60] : [246, 246, 244];
  const end = share < 0 ? (dark ? [224, 122, 52] : [179, 72, 8]) : (dark ? [86, 156, 240] : [14, 80, 165]);
  const weight = Math.abs(share) ** 0.8;
  const rgb = middle.map((part, place) => Math.round(part + (end[place] - part) * weight));
  const light = (0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]) / 255;
  return { fill: `rgb(${rgb})`, ink: light > 0.52 ? "#111" : "#fff" };
}

const reachOf = (values) => Math.min(0.5, Math.max(0.05, ...values.map((value) => Math.abs(value - 1))));

function scaleLegend(reach) {
  const stops = [-1, -0.5, 0, 0.5, 1].map((share) => diverging(1 + share * reach, reach).fill);
  const bar = element("i");
  bar.style.background = `linear-gradient(90deg, ${stops.join(",")})`;
  return element("span", { class: "scale" }, `≤ ${(1 - reach).toFixed(2)}`, bar, `≥ ${(1 + reach).toFixed(2)}`,
    element("span", {}, "1.00 in the middle: as good as alone"));
}

const LETTER = 6.4; // mean width of one in a label

/** A label that fits: what stands in the middle of a long one gives way, the whole one is its tooltip. */
function label(name, room, attributes) {
  const letters = Math.floor(room / LETTER), text = String(name);
  const node = shape("text", { class: "label", ...attributes },
    text.length <= letters ? text : `${text.slice(0, letters - 12)}…${text.slice(-11)}`);
  if (text.length > letters) node.append(shape("title", {}, text));
  return node;
}

/** Cells are {value, rows, text} or null. */
function heatmap({ title, rows, columns, cell, reach, rowLabel, width }) {
  const left = Math.min(Math.max(150, 0.4 * width), 14 + LETTER * Math.max(...rows.map((name) => String(name).length)));
  const top = Math.min(96, 10 + 4.6 * Math.max(...columns.map((name) => String(name).length)));
  const side = Math.max(26, Math.min(58, (width - left - 30) / columns.length));
  const high = Math.max(24, Math.min(34, side));
  const svg = shape("svg", { viewBox: `0 0 ${left + side * columns.length + 30} ${top + high * rows.length + 4}`,
    width: left + side * columns.length + 30, role: "group", "aria-label": title });
  columns.forEach((name, x) => svg.append(shape("text", {
    class: "label", "text-anchor": "start", transform: `translate(${left + side * (x + 0.45)} ${top - 6}) rotate(-38)` }, name)));
  rows.forEach((name, y) => {
    svg.append(label(name, left - 14, { x: left - 7, y: top + high * (y + 0.5) + 4, "text-anchor": "end" }));
    columns.forEach((other, x) => {
      const found = cell(name, other), place = { x: left + side * x, y: top + high * y, width: side - 1.5, height: high - 1.5, rx: 2 };
      if (!found) {
        svg.append(shape("rect", { ...place, fill: "none", stroke: "var(--line)" }));
        return;
      }
      const { fill, ink } = diverging(found.value, reach);
      const mark = shape("g", { "data-row": name, "data-column": other, "data-value": found.value });
      mark.append(shape("rect", { ...place, fill }));
      const value = shape("text", { x: place.x + side / 2, y: place.y + high / 2 + 4, "text-anchor": "middle" }, found.value.toFixed(2));
      value.style.fill = ink;
      if (side < 32) value.style.fontSize = "9px";
      mark.append(value);
      svg.append(interactive(mark, `${rowLabel(name, other)}\n${found.value.toFixed(4)} ± ${found.deviation.toFixed(4)}, ${found.rows.length} rows`, found.rows));
    });
  });
  return svg;
}

function ticks(low, high, count = 5) {
  const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= raw * 0.999);
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-6; value += step) found.push(value);
  return { found, digits: Math.max(0, -Math.floor(Math.log10(step) + 1e-9)) };
}

function axisOf(kind, values, from, to) {
  if (kind === "band") {
    const all = sorted(values);
    return { at: (value) => from + ((all.indexOf(value) + 0.5) / all.length) * (to - from), ticks: all.map((value) => [value, String(value)]) };
  }
  if (kind === "log") {
    const low = Math.floor(Math.log10(Math.min(...values)) * 4 - 0.4) / 4, high = Math.ceil(Math.log10(Math.max(...values)) * 4 + 0.4) / 4;
    const at = (value) => from + ((Math.log10(value) - low) / (high - low)) * (to - from);
    const marks = [];
    for (let power = Math.floor(low); power <= high; power += 1) {
      for (const factor of high - low < 3 ? [1, 2, 5] : [1]) {
        const value = factor * 10 ** power;
        if (Math.log10(value) >= low && Math.log10(value) <= high) {
          marks.push([value, value >= 1e4 || value < 1e-2 ? `${factor}e${power}` : String(Number(value.toPrecision(2)))]);
        }
      }
    }
    return { at, ticks: marks };
  }
  let low = Math.min(...values), high = Math.max(...values);
  const pad = (high - low) * 0.06 || Math.abs(high) * 0.05 || 0.05;
  low -= pad; high += pad;
  const { found, digits } = ticks(low, high);
  return { at: (value) => from + ((value - low) / (high - low)) * (to - from), ticks: found.map((value) => [value, value.toFixed(digits)]) };
}

function symbol(kind, x, y, size, color) {
  const common = { fill: color, stroke: color, "stroke-width": 1 };
  if (kind === "square") return shape("rect", { x: x - size, y: y - size, width: 2 * size, height: 2 * size, ...common });
  if (kind === "diamond") return shape("path", { d: `M${x} ${y - size * 1.4}L${x + size * 1.4} ${y}L${x} ${y + size * 1.4}L${x - size * 1.4} ${y}Z`, ...common });
  if (kind === "triangle") return shape("path", { d: `M${x} ${y - size * 1.3}L${x + size * 1.3} ${y + size}L${x - size * 1.3} ${y + size}Z`, ...common });
  if (kind === "cross") return shape("path", { d: `M${x - size} ${y - size}L${x + size} ${y + size}M${x + size} ${y - size}L${x - size} ${y + size}`, ...common, "stroke-width": 2.5 });
  if (kind === "ring") return shape("circle", { cx: x, cy: y, r: size, ...common, fill: "var(--back)", "stroke-width": 2 });
  return shape("circle", { cx: x, cy: y, r: size, ...common });
}

/**
 * Series are {name, look, line, points: [{x, y, low, high, rows, text}]}; `one` draws the line of 1.00, `diagonal`
 * that of equality, `front` joins points by steps.
 */
function plot({ title, series, xKind = "linear", xLabel, yLabel, width, height = 290, one, diagonal, front, legend = true, size = 4, marks = true }) {
  const points = series.flatMap((item) => item.points);
  const ys = points.flatMap((point) => [point.y, point.low, point.high]).filter(known);
  if (one) ys.push(1);
  const left = 52, right = width - 10, top = 10, bottom = height - 40;
  const xs = points.map((point) => point.x);
  const xAxis = axisOf(xKind, diagonal ? [...xs, ...ys] : xs, left, right);
  const yAxis = axisOf("linear", diagonal ? [...xs, ...ys] : ys, bottom, top);
  const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, width, role: "group", "aria-label": title });
  const axis = shape("g", { class: "axis" });
  for (const [value, text] of yAxis.ticks) {
    const y = yAxis.at(value);
    axis.append(shape("line", { class: "grid", x1: left, x2: right, y1: y, y2: y }), shape("text", { x: left - 6, y: y + 4, "text-anchor": "end" }, text));
  }
  let last = -99;
  for (const [value, text] of xAxis.ticks) {
    const x = xAxis.at(value), room = 6 * text.length + 8;
    axis.append(shape("line", { x1: x, x2: x, y1: bottom, y2: bottom + 4 }));
    if (x - last < room) continue;
    last = x;
    axis.append(shape("text", { x, y: bottom + 17, "text-anchor": "middle" }, text));
  }
  axis.append(shape("text", { x: (left + right) / 2, y: height - 6, "text-anchor": "middle" }, xLabel));
  axis.append(shape("text", { transform: `translate(12 ${(top + bottom) / 2}) rotate(-90)`, "text-anchor": "middle" }, yLabel));
  svg.append(axis);
  if (one) svg.append(shape("line", { class: "one", x1: left, x2: right, y1: yAxis.at(1), y2: yAxis.at(1) }));
  if (diagonal) {
    const low = Math.min(...xs, ...ys), high = Math.max(...xs, ...ys);
    svg.append(shape("line", { class: "one", x1: xAxis.at(low), y1: yAxis.at(low), x2: xAxis.at(high), y2: yAxis.at(high) }));
  }
  if (front && front.length > 1) {
    const path = front.map((point, place) => `${place ? `H${xAxis.at(point.x)}V` : `M${xAxis.at(point.x)} `}${yAxis.at(point.y)}`).join("");
    svg.append(shape("path", { d: path, fill: "none", stroke: "var(--soft)", "stroke-width": 1.2, "data-front": front.length }));
  }
  series.forEach((item, place) => {
    const group = shape("g", { "data-series": item.name, "fill-opacity": points.length > 150 ? 0.55 : null }), { color, shape: kind, dash } = item.look;
    const offset = xKind === "band" ? (place - (series.length - 1) / 2) * Math.min(3, 40 / series.length) : 0;
    const at = (point) => [xAxis.at(point.x) + offset, yAxis.at(point.y)];
    if (item.line && item.points.length > 1) {
      const d = item.points.map((point, index) => `${index ? "L" : "M"}${at(point).map((value) => value.toFixed(1)).join(" ")}`).join("");
      const path = shape("path", { d, fill: "none", stroke: color, "stroke-width": 1.6, "stroke-dasharray": dash });
      group.append(marks ? path : interactive(path, item.text, item.rows, false));
    }
    for (const point of item.points) {
      const [x, y] = at(point);
      if (known(point.low)) group.append(shape("line", { class: "error", x1: x, x2: x, y1: yAxis.at(point.low), y2: yAxis.at(point.high), stroke: color }));
      if (!marks && item.points.length > 1) continue;
      const mark = symbol(kind, x, y, size, color);
      mark.dataset.value = point.y;
      mark.dataset.x = point.x;
      group.append(interactive(mark, point.text || item.text, point.rows || item.rows, points.length <= 150));
    }
    svg.append(group);
  });
  const whole = element("div", { class: "plot" }, svg);
  if (legend && series.length > 1) whole.append(legendOf(series, svg));
  return whole;
}

function legendOf(series, svg) {
  const list = element("ul", { class: "legend" });
  const entries = [...new Map(series.map((item) => [item.legend || item.name, item])).entries()];
  for (const [name, item] of entries) {
    const swatch = shape("svg", { width: 22, height: 10, "aria-hidden": "true" });
    if (item.line) swatch.append(shape("line", { x1: 0, x2: 22, y1: 5, y2: 5, stroke: item.look.color, "stroke-width": 1.6, "stroke-dasharray": item.look.dash }));
    if (item.look.shape !== "none") swatch.append(symbol(item.look.shape, 11, 5, 3.2, item.look.color));
    const entry = element("li", {}, swatch, name);
    entry.addEventListener("pointerenter", () => svg.querySelectorAll("[data-series]").forEach((group) =>
      group.classList.toggle("dim", !series.some((other) => (other.legend || other.name) === name && other.name === group.dataset.series))));
    entry.addEventListener("pointerleave", () => svg.querySelectorAll(".dim").forEach((group) => group.classList.remove("dim")));
    list.append(entry);
  }
  return list;
}
