// The tensor drawn as its axes are: a table, a table for every sample, or planes of every sample and channel.

const AXIS_NAMES = { 1: ["N"], 2: ["N", "C"], 3: ["N", "C", "L"], 4: ["N", "C", "H", "W"], 5: ["N", "C", "D", "H", "W"] };
const axisNames = (rank) => AXIS_NAMES[rank] ?? Array.from({ length: rank }, (_, a) => `a${a}`);

/** How much of each axis is drawn: what fits a screen; the rest is averaged all the same. */
function drawnLengths(shape) {
  const most = { 1: [12], 2: [12, 10], 3: [4, 8, 8] }[shape.length] ?? [4, 4, ...shape.slice(2, -2).map(() => 3), 8, 8];
  return shape.map((n, a) => Math.min(n, most[a]));
}

/** The axes that are drawn: of a table, those longer than one, so that it looks the same with or without the others. */
function drawnAxes(shape) {
  const all = shape.map((_, a) => a);
  const long = isTable(shape) && shape.length > 2 ? all.filter((a) => shape[a] > 1) : all;
  return long.length > 0 ? long : [0];
}

/**
 * The plan of a drawing: planes, each {row, column, title, cells}, and cells {i, row, column}: flat number and place.
 */
function layOut(shape) {
  const rank = shape.length;
  const drawn = drawnLengths(shape);
  const strides = stridesOf(shape);
  const [height, width] = [rank > 1 ? drawn[rank - 2] : drawn[0], rank > 1 ? drawn[rank - 1] : 1];
  const outer = drawn.slice(0, Math.max(rank - 2, 0));
  const planes = [];
  for (let p = 0; p < product(outer); p++) {
    const index = unravel(p, outer);
    const start = index.reduce((sum, n, a) => sum + n * strides[a], 0);
    const cells = [];
    for (let row = 0; row < height; row++) {
      for (let column = 0; column < width; column++) {
        const step = rank > 1 ? row * strides[rank - 2] + column : row;
        cells.push({ i: start + step, row, column });
      }
    }
    planes.push({ index, ...placeOf(index, outer), cells });
  }
  return { shape, planes, height, width, drawn, cut: shape.some((n, a) => n > drawn[a]) };
}

/** Samples, and the slices of a volume, lie below each other and channels side by side; samples of one plane in a row. */
function placeOf([sample = 0, channel = 0, ...slice], outer) {
  if (product(outer.slice(1)) === 1) return { row: 0, column: sample };
  return { row: slice.reduce((row, n, k) => row * outer[k + 2] + n, sample), column: channel };
}

/** Put both drawings, before and after, into `places`, as empty cells. */
function drawTensor(places, view) {
  const axes = drawnAxes(view.shape);
  const names = axisNames(view.shape.length);
  const plan = { ...layOut(axes.map((a) => view.shape[a])), names: axes.map((a) => names[a]) };
  const across = plan.width * new Set(plan.planes.map((p) => p.column)).size;
  const [small, roomy] = [across > 14, across <= 6];
  const size = Math.max(9, Math.min(18, Math.floor((500 - 12 * (across / plan.width)) / across) - 2)); // pixels of a small cell
  for (const place of places) {
    place.style.setProperty("--size", `${size}px`);
    place.classList.toggle("small", small);
    place.classList.toggle("dense", !small && across > 8);
  }
  const cells = places.map((place, side) => drawOne(place, view, plan, side));
  return { plan, cells, small, roomy };
}

function drawOne(place, view, plan, side) {
  const byNumber = new Map();
  const { names } = plan;
  place.replaceChildren();
  place.style.setProperty("--columns", 1 + Math.max(...plan.planes.map((p) => p.column)));
  for (const plane of plan.planes) {
    const card = element("div", "plane");
    card.style.gridRow = plane.row + 1;
    card.style.gridColumn = plane.column + 1;
    if (names.length > 2) card.append(element("div", "plane-title", plane.index.map((n, a) => `${names[a]} ${n}`).join(" · ")));
    card.append(planeBody(plane, view, plan, byNumber, side));
    place.append(card);
  }
  return byNumber;
}

function planeBody(plane, view, plan, byNumber, side) {
  const rank = plan.names.length;
  const body = element("div", "plane-body");
  const headed = rank <= 3;
  body.style.setProperty("--width", plan.width);
  body.classList.toggle("headed", headed);
  if (headed) {
    body.append(element("span", "head", rank === 1 ? `${plan.names[0]}↓` : rank === 2 ? "" : `${plan.names.at(-2)}↓ ${plan.names.at(-1)}→`));
    for (let c = 0; c < plan.width; c++) body.append(element("span", "head", headText(view, rank, c)));
  }
  for (const cell of plane.cells) {
    if (headed && cell.column === 0) body.append(element("span", "head", String(cell.row)));
    const button = element("button", "cell");
    button.type = "button";
    button.tabIndex = -1;
    button.dataset.i = cell.i;
    button.dataset.row = plane.row * plan.height + cell.row;
    button.dataset.column = plane.column * plan.width + cell.column;
    button.dataset.side = side;
    byNumber.set(cell.i, button);
    body.append(button);
  }
  return body;
}

function headText(view, rank, column) {
  const names = rank === 2 ? view.tensor.names : null;
  return names?.length === view.shape.at(-1) ? names[column] : rank === 1 ? "x" : String(column);
}

/** Show values, colors and marks: `values` by side, `lit` the group of the chosen value. */
function paint(drawing, view, values, chosen, words) {
  const group = view.ids[chosen];
  drawing.cells.forEach((byNumber, side) => {
    const numbers = [...byNumber.keys()];
    const color = colors(numbers.map((i) => values[side][i]));
    const name = side === 0 ? "x" : "y";
    for (const [i, button] of byNumber) {
      const value = values[side][i];
      const { hue, strength } = color(value);
      const missing = isMissing(view.tensor, i);
      const shown = !drawing.roomy ? narrow(value) : side === 0 ? short(value) : normal(value);
      button.textContent = drawing.small ? "" : missing ? "–" : shown;
      button.style.setProperty("--strength", `${strength}%`);
      button.dataset.hue = hue;
      button.classList.toggle("lit", view.ids[i] === group);
      if (i === chosen) button.setAttribute("aria-current", "true");
      else button.removeAttribute("aria-current");
      button.tabIndex = i === chosen ? 0 : -1;
      const member = view.ids[i] === group && i !== chosen ? words.averagedToo : "";
      button.setAttribute("aria-label", `${name}[${unravel(i, view.shape).join(", ")}] = ${missing ? words.fill("missing") : short(value)}${member}`);
    }
  });
}

/** Two hues about zero where values have both signs, else one from the least to the greatest. */
function colors(values) {
  const finite = values.filter(Number.isFinite);
  const [low, high] = [Math.min(...finite), Math.max(...finite)];
  const signed = low < 0 && high > 0;
  const wide = signed ? Math.max(-low, high) : high - low;
  return (value) => {
    if (!Number.isFinite(value)) return { hue: "bad", strength: 0 };
    const part = wide > 0 ? (signed ? Math.abs(value) : value - low) / wide : 0;
    return { hue: signed && value < 0 ? "negative" : "positive", strength: Math.round(8 + 42 * part) };
  };
}

/** The drawn cell next to `from` in a direction, or undefined at the edge. */
function neighbor(byNumber, from, down, right) {
  const at = byNumber.get(from).dataset;
  const [row, column] = [Number(at.row) + down, Number(at.column) + right];
  return [...byNumber].find(([, b]) => Number(b.dataset.row) === row && Number(b.dataset.column) === column)?.[0];
}

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}
