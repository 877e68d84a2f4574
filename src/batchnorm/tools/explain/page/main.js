// The page: one state, and what it shows of it.

const DATA = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const TENSORS = DATA.tensors.map(decoded);
const KINDS = { "batch-norms": ["1d", "2d", "3d", "axis"], "other-norms": ["layer", "group", "instance"] };
const NAMES = { "1d": "BatchNorm1d", "2d": "BatchNorm2d", "3d": "BatchNorm3d", layer: "LayerNorm", group: "GroupNorm", instance: "InstanceNorm" };
const LINES = 24; // drawn in a chart of lines at most
const PAIRWISE = 1500; // values compared with each other at most
const BATCHES = ["batch", "batch-again"]; // the same slider, at the top and where running statistics are
const START = { gamma: 1, beta: 0, eps: DATA.eps, momentum: 0.1, cumulative: false, steps: 40 };

const state = { ...START, tensor: TENSORS[0], kind: TENSORS[0].kind, axes: TENSORS[0].axes, blocks: 1, batch: 1, chosen: 0, moved: null };
let words = wordsOf(DATA.lang ?? (navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en"));
let view, result, drawing;

function decoded(tensor) {
  const bytes = Uint8Array.from(atob(tensor.data), (c) => c.charCodeAt(0));
  const typed = tensor.dtype === "float32" ? new Float32Array(bytes.buffer) : new Float64Array(bytes.buffer);
  return { ...tensor, values: Float64Array.from(typed) };
}

// What changes the state

function chooseTensor(tensor, kind) {
  Object.assign(state, { tensor, kind, axes: tensor.axes, chosen: tensor.chosen, moved: null });
  state.batch = samplesIn(tensor, kind);
  state.blocks = defaultBlocks();
  rebuild();
}

function chooseKind(kind) {
  const asked = kind;
  if (seenShape(kind, state.tensor.shape) === null) {
    const other = TENSORS.find((t) => seenShape(asked, t.shape) !== null);
    chooseTensor(other, asked);
    state.moved = asked;
    return show();
  }
  const wholeBatch = state.batch === samplesIn(state.tensor, state.kind);
  Object.assign(state, { kind, moved: null });
  const samples = samplesIn(state.tensor, kind);
  state.batch = wholeBatch ? samples : Math.min(state.batch, samples);
  state.blocks = defaultBlocks();
  rebuild();
}

const samplesIn = (tensor, kind) => seenShape(kind, tensor.shape)[0];

/** The number of groups to begin with: the smallest that is more than one and less than the channels, if any is. */
function defaultBlocks() {
  const shape = seenShape(state.kind, state.tensor.shape);
  const choices = divisors(shape[1] ?? 1);
  return choices.find((d) => d > 1) ?? 1;
}

function choose(i) {
  state.chosen = i;
  show();
}

/** A new view: other groups, or another batch. */
function rebuild() {
  view = makeView(state.tensor, state.kind, state.axes, state.blocks, state.batch);
  state.chosen = Math.min(state.chosen, view.values.length - 1);
  drawing = drawTensor([at("before"), at("after")], view);
  if (!drawing.cells[0].has(state.chosen)) state.chosen = 0;
  show();
}

// What is shown of it

function show() {
  result = normalize(view, state);
  showControls();
  showDrawing();
  showHistograms();
  showFound();
  showRunning();
  showConclusion();
}

function showControls() {
  at("tensor").value = state.tensor.id;
  for (const input of document.querySelectorAll("input[name=kind]")) input.checked = input.value === state.kind;
  const rank = state.tensor.shape.length;
  at("axes-field").hidden = state.kind !== "axis";
  at("axes").replaceChildren(...state.tensor.shape.map((n, a) => axisBox(a, n, rank)));
  at("blocks-field").hidden = state.kind !== "group";
  at("blocks").replaceChildren(...divisors(view.shape[1] ?? 1).map((d) => new Option(String(d), d, false, d === state.blocks)));
  for (const id of BATCHES) {
    at(id).max = samplesIn(state.tensor, state.kind);
    at(id).value = state.batch;
    at(`${id}-out`).textContent = String(state.batch);
  }
  for (const id of ["gamma", "beta", "momentum", "steps"]) at(id).value = state[id];
  at("eps").value = Math.log10(state.eps);
  for (const id of ["gamma", "beta", "eps", "momentum", "steps"]) at(`${id}-out`).textContent = short(state[id]);
  at("cumulative").checked = state.cumulative;
  at("momentum").disabled = state.cumulative;
  if (state.cumulative) at("momentum-out").textContent = "None";
  const axes = state.moved && words.fill(`axes_${state.moved}`);
  const moved = { kind: NAMES[state.moved], axes, tensor: titleOf(state.tensor) };
  at("moved").textContent = state.moved ? words.fill("moved", moved) : "";
  at("code").textContent = codeOf(view);
}

function axisBox(a, length, rank) {
  const label = element("label");
  const box = element("input");
  Object.assign(box, { type: "checkbox", checked: state.axes.includes(a) });
  box.addEventListener("change", () => {
    state.axes = box.checked ? [...state.axes, a].sort((p, q) => p - q) : state.axes.filter((b) => b !== a);
    rebuild();
    at("axes").querySelectorAll("input")[a].focus();
  });
  label.append(box, element("span", "", `${a}: ${axisNames(rank)[a]} = ${length}`));
  return label;
}

/** The call that computes this, by its own library. */
function codeOf({ kind, shape, kept, blocks }) {
  const channels = shape[1];
  if (kind === "axis") return `bn.batch_norm(x, axis=${tuple(kept)})[0]`;
  if (kind === "layer") return `torch.nn.functional.layer_norm(x, x.shape[1:])`;
  if (kind === "group") return `torch.nn.GroupNorm(${blocks}, ${channels})(x)`;
  if (kind === "instance") return `torch.nn.functional.instance_norm(x)`;
  return `bn.${NAMES[kind]}(${channels})(x)`;
}

const tuple = (numbers) => (numbers.length === 1 ? String(numbers[0]) : `(${numbers.join(", ")})`);
const titleOf = (tensor) => (tensor.id === "yours" ? tensor.source ?? words.fill("yours") : words.fill(tensor.id));
const valuesIn = (n) => (n === 1 ? words.fill("oneValue") : words.fill("values", { n: many(n) }));

function showDrawing() {
  paint(drawing, view, [view.values, result.y], state.chosen, words);
  at("before").setAttribute("aria-label", words.fill("before"));
  at("after").setAttribute("aria-label", words.fill("after"));
  const members = view.members[view.ids[state.chosen]];
  const unit = unitOf(view) === "column" ? "column" : "channel";
  at("lead").textContent = BATCH_NORMS.includes(view.kind) && view.kept.length > 0 ? words.fill(`lead_${unit}`) : "";
  const known = { shape: shapeText(view.shape), m: valuesIn(members.length), count: words.fill("groups", { n: many(view.members.length) }) };
  at("seen").textContent = words.fill(view.members.length === 1 ? "seenOne" : "seen", known);
  const sizes = { drawn: shapeText(drawing.plan.drawn), shape: shapeText(drawing.plan.shape) };
  const cut = drawing.plan.cut ? words.fill("cut", sizes) : "";
  const part = state.tensor.whole ? { shape: shapeText(state.tensor.shape), whole: shapeText(state.tensor.whole) } : null;
  at("cut").textContent = words.sentences([cut, part ? words.fill("excerpt", part) : ""]);
  const alone = members.length === 1 ? words.fill("alone") : "";
  at("lit").textContent = words.sentences([words.fill("lit", { group: nameOfGroup(), values: valuesIn(members.length) }), alone]);
  showFormulas(at("formulas"), formulasOf(view, result, state, state.chosen));
  const m = result.moments[view.ids[state.chosen]];
  const divided = { m: many(m.count), biased: short(variance(m)), unbiased: short(variance(m, 1)) };
  at("divides").textContent = m.count > 1 && Number.isFinite(m.m2) ? words.fill("divides", divided) : "";
}

const shapeText = (shape) => `(${shape.join(", ")}${shape.length === 1 ? "," : ""})`;
const nameOfGroup = () => groupName(view, view.ids[state.chosen], words.fill, words.language);

function showHistograms() {
  const members = view.members[view.ids[state.chosen]];
  const sides = [["before", view.values, "histogramBefore"], ["after", result.y, "histogramAfter"]];
  for (const [side, values, key] of sides) {
    const m = momentsOf(values, members);
    const std = Math.sqrt(variance(m));
    const [mean, deviation] = (side === "before" ? [m.mean, std].map((v) => short(v, 4)) : [m.mean, std].map(decimals));
    const text = `${words.fill("mean")} ${mean} ± ${words.fill("std")} ${deviation}`;
    const description = words.fill(key, { group: nameOfGroup(), mean, std: deviation });
    drawHistogram(at(`histogram-${side}`), members.map((i) => values[i]), { mean: m.mean, std, text }, side, description);
  }
  at("shape").textContent = shapeSentence(members);
}

/** That the shape stays, whatever lecture notes say. */
function shapeSentence(members) {
  const [before, after] = [view.values, result.y].map((values) => skewness(values, members));
  if (!Number.isFinite(before) || !Number.isFinite(after)) return words.fill("no_shape", { which: nameOfGroup() });
  const known = { which: nameOfGroup(), before: short(before, 3), after: short(after, 3) };
  return words.fill(state.gamma < 0 ? "mirrored" : "not_normal", known);
}

function showFound() {
  const group = nameOfGroup();
  const members = view.members[view.ids[state.chosen]];
  at("inside").textContent = words.fill("inside", { group });
  at("across").textContent = words.fill("across", { unit: words.fill(unitOf(view)) });
  const labels = [words.fill("before"), words.fill("after")];
  drawLines("slopes-inside", members, labels, words.fill("slopesInside", { group }));
  drawLines("slopes-across", peersOf(view, state.chosen), labels, words.fill("slopesAcross"));
  const unit = unitOf(view);
  const [order, ordered] = orderVerdict(some(members, PAIRWISE), group);
  verdict(at("order"), order, words.fill(`order_${unit}`), ordered);
  verdict(at("distances"), order === "changed" ? "changed" : "kept", words.fill(`distances_${unit}`), placeText(members));
  verdict(at("between"), ...betweenVerdict(unit));
}

/** A word, what it is about, and the sentences behind it. */
function verdict(place, word, about, text) {
  const colored = word === "kept" ? "kept" : "lost";
  place.replaceChildren(element("strong", `verdict ${colored}`, words.fill(word)), " ", element("strong", "", about), element("br"), text);
}

/** The values at the same place in every group. */
function peersOf(view, i) {
  const rank = view.places[view.ids[i]].indexOf(i);
  return view.places.map((places) => places[rank]).filter((j) => j === i || !isMissing(view.tensor, j));
}

/** At most `most` of some numbers, the chosen one among them, spread without a period that could match the data's. */
function some(numbers, most) {
  if (numbers.length <= most) return numbers;
  let step = Math.round(numbers.length * 0.6180339887498949);
  while (greatestDivisor(step, numbers.length) > 1) step += 1;
  const spread = Array.from({ length: most }, (_, k) => numbers[(k * step) % numbers.length]);
  return spread.includes(state.chosen) || !numbers.includes(state.chosen) ? spread : [state.chosen, ...spread.slice(1)];
}

const greatestDivisor = (a, b) => (b === 0 ? a : greatestDivisor(b, a % b));

function drawLines(id, numbers, labels, text) {
  const shown = some(numbers, LINES);
  const pairs = shown.map((i) => [view.values[i], result.y[i]]);
  const more = shown.length < numbers.length ? ` ${words.fill("shownSome", { n: shown.length, all: many(numbers.length) })}` : "";
  drawSlopes(at(id), pairs, shown.indexOf(state.chosen), labels, text + more);
}

function orderVerdict(numbers, group) {
  if (numbers.length < 2) return ["kept", words.fill("order_one")];
  const { pairs, reversed, equal } = compare(view.values, result.y, numbers);
  const known = { pairs: words.fill("pairs_in", { n: many(pairs), group }), n: many(reversed || equal) };
  if (state.gamma === 0) return ["changed", words.fill("order_ended")];
  if (reversed) return ["changed", words.fill("order_turned", known)];
  const rounded = equal === 0 ? "" : words.fill(equal === 1 ? "rounded_equal_one" : "rounded_equal_many", known);
  return ["kept", words.sentences([words.fill("no_side_changed", known), rounded])];
}

/** Where the chosen value lies between the least and the greatest of its group, before and after. */
function placeText(members) {
  const i = state.chosen;
  const ends = (values) => members.reduce(([a, b], j) => [Math.min(a, values[j]), Math.max(b, values[j])], [Infinity, -Infinity]);
  const [[low, high], [lowAfter, highAfter]] = [ends(view.values), ends(result.y)];
  const part = (value, from, to) => `${short((100 * (value - from)) / (to - from), 4)}\u00a0%`;
  const [x, y] = [view.values[i], result.y[i]];
  if (!(low < high) || !(lowAfter < highAfter) || !Number.isFinite(y)) return "";
  const before = { value: short(x), fraction: part(x, low, high), low: short(low), high: short(high) };
  const after = { value_after: normal(y), fraction_after: part(y, lowAfter, highAfter), low_after: normal(lowAfter), high_after: normal(highAfter) };
  return words.fill("lies", { ...before, ...after });
}

function betweenVerdict(unit) {
  const about = words.fill(`between_${unit}`);
  if (view.members.length < 2) return ["kept", about, words.fill("between_none")];
  const peers = peersOf(view, state.chosen);
  const whole = view.values.length <= PAIRWISE;
  const numbers = whole ? view.members.flat() : some(peers, PAIRWISE);
  const c = compare(view.values, result.y, numbers, (i, j) => view.ids[i] !== view.ids[j]);
  if (c.pairs === c.kept) return ["kept", about, words.fill(`alike_${unit}`)];
  const share = `${short((100 * (c.pairs - c.kept)) / c.pairs, 2)}\u00a0%`;
  const meaning = words.fill(`do_not_compare_${unit}`, { share, such: words.fill(whole ? "such_whole" : "such_sampled") });
  return ["lost", about, words.sentences([pairText(peers), meaning])];
}

/** The pair at the chosen place that lies furthest apart before and compares differently after, as a sentence. */
function pairText(peers) {
  let [best, apart] = [null, 0];
  for (const i of peers) {
    for (const j of peers) {
      const before = view.values[i] - view.values[j];
      if (before > apart && !(result.y[i] > result.y[j])) [best, apart] = [[i, j], before];
    }
  }
  if (best === null) return "";
  const [i, j] = best;
  const [c, d] = [normal(result.y[i]), normal(result.y[j])];
  const key = result.y[i] === result.y[j] ? "between_same" : "between_pair";
  return words.fill(key, { a: short(view.values[i]), b: short(view.values[j]), c, d });
}

/** What a reader should take away, and where to go. */
function showConclusion() {
  const unit = view.kept.length === 0 ? "everything" : unitOf(view);
  const said = [unit === "everything" ? "" : words.fill(`scale_${unit}`), words.fill(`compare_${unit}`), words.fill("stays"), undoneText()];
  at("conclusion").replaceChildren(...said.filter(Boolean).map((text) => element("li", "", text)));
}

function undoneText() {
  const g = view.ids[state.chosen];
  const m = result.moments[g];
  if (!(m.m2 > 0) || !BATCH_NORMS.includes(view.kind)) return "";
  const std = short(Math.sqrt(variance(m) + state.eps));
  const digits = digitsFor(m.mean, Math.sqrt(variance(m)));
  const shown = view.members[g].slice(0, 5).map((i) => short(view.values[i], digits));
  const values = [...shown, ...(m.count > 5 ? ["…"] : [])].join(", ");
  return words.fill("undone", { weight: `weight = √(var + eps) = ${std}`, bias: `bias = mean = ${short(m.mean)}`, which: nameOfGroup(), values });
}

/** Set weight and bias to what undoes the normalization of the lit values. */
function undo() {
  const m = result.moments[view.ids[state.chosen]];
  if (Number.isFinite(m.m2)) Object.assign(state, { gamma: Math.sqrt(variance(m) + state.eps), beta: m.mean });
  show();
}

function showRunning() {
  const run = trainChannel(state.tensor, view, state.chosen, state.cumulative ? null : state.momentum, state.steps);
  const why = run === null ? noRunningText() : run.rows ? "" : words.fill("refusedOne");
  at("no-running").textContent = why;
  at("running").hidden = run === null;
  for (const id of ["per-batch", "running-mean", "running-var", "chosen-value", "evaluation", "mean-caption", "var-caption"]) at(id).hidden = why !== "";
  if (!why) showRun(run);
}

function noRunningText() {
  return BATCH_NORMS.includes(view.kind) ? words.fill("noBatchAxis") : words.fill("noRunning", { kind: NAMES[view.kind] });
}

function showRun({ rows, whole }) {
  const end = rows.at(-1);
  const samples = samplesIn(state.tensor, state.kind);
  at("per-batch").textContent = words.fill("perBatch", { b: view.shape[0], n: samples, steps: state.steps });
  at("mean-caption").textContent = `${words.fill("runningMean")} = ${short(end.mean)}`;
  at("var-caption").textContent = `${words.fill("runningVar")} = ${short(end.unbiased)} (${words.fill("unbiased")}), ${short(end.biased)} (${words.fill("biased")})`;
  const line = (key, start) => [start, ...rows.map((r) => r[key])];
  const means = [{ className: "unbiased", values: line("mean", 0), text: short(end.mean, 4) }];
  const text = { value: short(end.mean), target: short(whole.mean) };
  drawRunning(at("running-mean"), rows.map((r) => r.batchMean), means, [{ className: "", value: whole.mean }], words.fill("meanChart", text));
  const vars = ["unbiased", "biased"].map((k) => ({ className: k, values: line(k, 1), text: words.fill(k) }));
  const ends = { unbiased: short(end.unbiased), biased: short(end.biased) };
  drawRunning(at("running-var"), rows.map((r) => r.batchVar), vars, [{ className: "", value: variance(whole) }], words.fill("varChart", ends));
  const x = view.values[state.chosen];
  const evaluated = scaled(normalized(x, end.mean, end.unbiased, state.eps), state);
  at("chosen-value").textContent = words.fill("chosenValue", { x: short(x) });
  showFormulas(at("evaluation"), [
    ["y", words.fill("trainingGives"), normal(result.y[state.chosen])],
    ["y", words.fill("evaluationGives"), normal(evaluated)],
  ]);
}

// Words, and the table of the whole array, which stay while the state changes

function showWords() {
  document.documentElement.lang = words.language === "zh" ? "zh-CN" : "en";
  for (const place of document.querySelectorAll("[data-word]")) place.textContent = words.fill(place.dataset.word);
  at("undo").title = words.fill("undo_title");
  at("next").replaceChildren(...nextLines());
  at("tensor").replaceChildren(...TENSORS.map((t) => new Option(titleOf(t), t.id)));
  at("batch-norms").setAttribute("aria-label", words.fill("batchNorms"));
  at("other-norms").setAttribute("aria-label", words.fill("others"));
  for (const [id, kinds] of Object.entries(KINDS)) at(id).replaceChildren(...kinds.map(kindButton));
  showWhole();
}

function nextLines() {
  const led = [["batchnorm explain FILE", "next_own"], ["batchnorm why", "next_why"], [words.fill("tutorial"), "next_tutorial"]];
  return led.map(([command, key]) => {
    const item = element("li");
    item.append(element("code", "", command), " ", words.fill(key));
    return item;
  });
}

function kindButton(kind) {
  const label = element("label");
  const radio = element("input");
  Object.assign(radio, { type: "radio", name: "kind", value: kind });
  radio.addEventListener("change", () => chooseKind(kind));
  label.append(radio, element("span", "", words.fill(`kind_${kind}`)));
  return label;
}

function showWhole() {
  const whole = DATA.whole;
  at("whole").hidden = whole === null;
  if (whole === null) return;
  const plural = words.fill(whole.unit);
  at("whole-title").textContent = words.fill("whole", { unit: plural });
  at("whole-source").textContent = `${whole.source ?? words.fill("yours")} · ${whole.facts[words.language]}`;
  at("remarks").replaceChildren(...whole.remarks.map((texts) => element("li", "quiet", texts[words.language])));
  at("outliers").replaceChildren(...whole.outliers.map((texts) => element("p", "message", texts[words.language])));
  const heads = [plural, ...["mean", "std", "minimum", "maximum"].map((k) => words.fill(k)), "→", words.fill("mean"), words.fill("std"), ""];
  const head = element("tr");
  head.append(...heads.map((text) => element("th", "", text)));
  const rows = whole.rows.map((row) => {
    const made = element("tr");
    made.append(...[row.name, ...row.texts.slice(0, 4), "→", ...row.texts.slice(4), row.kinds.map((k) => words.fill(k)).join("; ")].map((text) => element("td", "", text)));
    return made;
  });
  at("channels").replaceChildren(head, ...rows);
  at("more-rows").textContent = whole.left ? words.fill("moreRows", { n: many(whole.left) }) : "";
}

// What the reader does

function listen() {
  at("language").addEventListener("click", () => {
    words = wordsOf(words.language === "en" ? "zh" : "en");
    showWords();
    show();
  });
  at("tensor").addEventListener("change", (event) => {
    const tensor = TENSORS.find((t) => t.id === event.target.value);
    chooseTensor(tensor, tensor.kind);
  });
  at("blocks").addEventListener("change", (event) => {
    state.blocks = Number(event.target.value);
    rebuild();
  });
  for (const id of BATCHES) {
    at(id).addEventListener("input", (event) => {
      state.batch = Number(event.target.value);
      rebuild();
    });
  }
  for (const id of ["gamma", "beta", "momentum", "steps"]) {
    at(id).addEventListener("input", (event) => {
      state[id] = Number(event.target.value);
      show();
    });
  }
  at("eps").addEventListener("input", (event) => {
    state.eps = Number((10 ** Number(event.target.value)).toPrecision(2));
    show();
  });
  at("cumulative").addEventListener("change", (event) => {
    state.cumulative = event.target.checked;
    show();
  });
  at("undo").addEventListener("click", undo);
  at("reset").addEventListener("click", () => {
    Object.assign(state, START, { batch: samplesIn(state.tensor, state.kind) });
    rebuild();
  });
  for (const id of ["before", "after"]) listenToCells(at(id));
}

const MOVES = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

function listenToCells(place) {
  const numberOf = (event) => event.target.closest(".cell")?.dataset.i;
  for (const kind of ["pointerover", "focusin", "click"]) {
    place.addEventListener(kind, (event) => {
      const i = numberOf(event);
      if (i !== undefined && Number(i) !== state.chosen) choose(Number(i));
    });
  }
  place.addEventListener("keydown", (event) => {
    if (!(event.key in MOVES) || numberOf(event) === undefined) return;
    event.preventDefault();
    const cells = drawing.cells[place.id === "before" ? 0 : 1];
    const next = neighbor(cells, Number(numberOf(event)), ...MOVES[event.key]);
    if (next !== undefined) cells.get(next).focus();
  });
}

showWords();
listen();
chooseTensor(TENSORS[0], TENSORS[0].kind);
// For tests, and for the console of a curious reader: the numbers behind the digits.
window.batchnorm = { state, numbers: () => ({ view, result }), short, normal, decimals, histogramOf };
