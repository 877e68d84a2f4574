// Charts as SVG: histograms, lines from before to after, and running statistics over the batches.

const SVG = "http://www.w3.org/2000/svg";

function svg(tag, attributes = {}, text) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

/** An empty chart of width by height units, with its description for those who do not see it. */
function chart(width, height, description) {
  const made = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": description });
  made.append(svg("title", {}, description));
  return made;
}

/** From numbers to places; a range of no width is given some. */
function scale(low, high, from, to) {
  if (!Number.isFinite(high - low)) [low, high] = [0, 1];
  const pad = Math.max(0.5, Math.abs(low) / 4);
  if (!(high > low)) [low, high] = [low - pad, high + pad];
  return (value) => from + ((value - low) / (high - low)) * (to - from);
}

/** Round numbers inside a range, about `count` of them. */
function ticks(low, high, count = 4) {
  if (!Number.isFinite(high - low)) return [];
  if (!(high > low)) return [low];
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((k) => k * power).find((s) => s >= rough);
  const first = Math.ceil(low / step - 1e-9);
  const last = Math.floor(high / step + 1e-9);
  return Array.from({ length: Math.max(0, last - first + 1) }, (_, k) => (first + k) * step);
}

const tickText = (value) => short(Math.abs(value) < 1e-12 ? 0 : value, 4);

const SLACK = 1e-4; // of a bar: rounding moves no value into the bar below

/** Values counted in equal bins from the least to the greatest; the chart's own numbers. */
function histogramOf(values) {
  const finite = values.filter(Number.isFinite);
  if (finite.length === 0) return { low: 0, high: 0, counts: [] };
  const [low, high] = finite.reduce(([a, b], v) => [Math.min(a, v), Math.max(b, v)], [Infinity, -Infinity]);
  const bins = Math.max(5, Math.min(30, Math.ceil(2 * Math.cbrt(finite.length))));
  const counts = new Array(high > low ? bins : 1).fill(0);
  const place = (v) => Math.min(bins - 1, Math.floor(((v - low) / (high - low)) * bins + SLACK)); // as in distribution.py
  for (const v of finite) counts[high > low ? place(v) : 0] += 1;
  return { low, high, counts };
}

function drawHistogram(place, values, { mean, std, text }, side, description) {
  const [width, height, base, left] = [460, 172, 150, 14];
  const { low, high, counts } = histogramOf(values);
  const made = chart(width, height, description);
  const reach = [Math.min(low, mean - std), Math.max(high, mean + std)].map((v, k) => (Number.isFinite(v) ? v : [low, high][k]));
  const x = scale(...reach, left, width - left);
  const y = scale(0, Math.max(...counts, 1), base, 22);
  const wide = high > low ? (x(high) - x(low)) / counts.length : 8;
  if (Number.isFinite(std)) {
    const band = { x: x(mean - std), y: 14, width: Math.max(1, x(mean + std) - x(mean - std)), height: base - 14 };
    made.append(svg("rect", { class: "band", ...band }));
  }
  counts.forEach((n, k) => {
    const at = high > low ? x(low) + k * wide : x(low) - 4;
    made.append(svg("rect", { class: `bar ${side}`, x: at + 0.75, y: y(n), width: Math.max(1, wide - 1.5), height: base - y(n) }));
  });
  made.append(svg("line", { class: "axis", x1: left, x2: width - left, y1: base, y2: base }));
  for (const t of ticks(...reach, 6)) {
    made.append(svg("line", { class: "axis", x1: x(t), x2: x(t), y1: base, y2: base + 4 }));
    made.append(svg("text", { class: "tick", x: x(t), y: base + 17, "text-anchor": "middle" }, tickText(t)));
  }
  if (Number.isFinite(mean)) {
    made.append(svg("line", { class: "mean", x1: x(mean), x2: x(mean), y1: 12, y2: base }));
    const end = x(mean) > width - 90;
    const words = { class: "mean-text", x: x(mean) + (end ? -5 : 5), y: 11, "text-anchor": end ? "end" : "start" };
    made.append(svg("text", words, text));
  }
  place.replaceChildren(made);
}

/** Lines from each value before to the same value after; `strong` is the number of the chosen one. */
function drawSlopes(place, pairs, strong, labels, description) {
  const [width, height, left, right, top, bottom] = [420, 230, 92, 328, 26, 216];
  const made = chart(width, height, description);
  const finite = pairs.filter(([a, b]) => Number.isFinite(a) && Number.isFinite(b));
  const range = (side) => [Math.min(...finite.map((p) => p[side])), Math.max(...finite.map((p) => p[side]))];
  if (finite.length > 0) {
    const [from, to] = [scale(...range(0), bottom, top), scale(...range(1), bottom, top)];
    for (const at of [left, right]) made.append(svg("line", { class: "axis", x1: at, x2: at, y1: top - 6, y2: bottom + 6 }));
    finite.forEach(([a, b], k) => {
      const chosen = finite[k] === pairs[strong];
      made.append(svg("line", { class: `slope${chosen ? " strong" : ""}`, x1: left, x2: right, y1: from(a), y2: to(b) }));
      for (const [at, y] of [[left, from(a)], [right, to(b)]]) made.append(svg("circle", { class: "dot", cx: at, cy: y, r: chosen ? 4 : 2.5 }));
    });
    spaced(finite.map(([a]) => [a, from(a)])).forEach(([v, y]) => made.append(svg("text", { class: "tick", x: left - 9, y: y + 4, "text-anchor": "end" }, short(v, 4))));
    spaced(finite.map(([, b]) => [b, to(b)])).forEach(([v, y]) => made.append(svg("text", { class: "tick", x: right + 9, y: y + 4 }, normal(v))));
  }
  made.append(svg("text", { class: "side-text", x: left, y: 12, "text-anchor": "middle" }, labels[0]));
  made.append(svg("text", { class: "side-text", x: right, y: 12, "text-anchor": "middle" }, labels[1]));
  place.replaceChildren(made);
}

/** Those labels that do not touch the one before. */
function spaced(labels, gap = 13) {
  const kept = [];
  for (const label of labels.sort((a, b) => a[1] - b[1])) {
    if (kept.length === 0 || label[1] - kept.at(-1)[1] >= gap) kept.push(label);
  }
  return kept;
}

/** Lines over the batches: `series` are {className, values, text}; `targets` are {className, value}. */
function drawRunning(place, dots, series, targets, description) {
  const [width, height, left, right, top, bottom] = [460, 220, 44, 378, 14, 190];
  const made = chart(width, height, description);
  const all = [...dots, ...series.flatMap((s) => s.values), ...targets.map((t) => t.value)].filter(Number.isFinite);
  const [low, high] = [Math.min(...all), Math.max(...all)];
  const x = scale(0, Math.max(1, series[0].values.length - 1), left, right);
  const y = scale(low, high, bottom, top);
  for (const t of ticks(low, high)) {
    made.append(svg("line", { class: "grid", x1: left, x2: right, y1: y(t), y2: y(t) }));
    made.append(svg("text", { class: "tick", x: left - 6, y: y(t) + 4, "text-anchor": "end" }, tickText(t)));
  }
  for (const t of ticks(0, series[0].values.length - 1, 5).filter(Number.isInteger)) {
    made.append(svg("text", { class: "tick", x: x(t), y: bottom + 18, "text-anchor": "middle" }, String(t)));
  }
  for (const t of targets.filter((target) => Number.isFinite(target.value))) made.append(svg("line", { class: `target ${t.className}`, x1: left, x2: right, y1: y(t.value), y2: y(t.value) }));
  dots.forEach((v, t) => Number.isFinite(v) && made.append(svg("circle", { class: "batch", cx: x(t + 1), cy: y(v), r: 2.2 })));
  for (const s of series) {
    const finite = s.values.map((v, t) => [t, v]).filter(([, v]) => Number.isFinite(v));
    const points = finite.map(([t, v]) => `${x(t).toFixed(1)},${y(v).toFixed(1)}`).join(" ");
    made.append(svg("polyline", { class: `line ${s.className}`, points }));
  }
  spaced(series.map((s) => [s, y(s.values.at(-1))]).filter(([, at]) => Number.isFinite(at)), 15).forEach(([s, at]) =>
    made.append(svg("text", { class: `line-text ${s.className}`, x: right + 6, y: at + 4 }, s.text)),
  );
  place.replaceChildren(made);
}
