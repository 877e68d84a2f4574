// Which values are averaged together. Every kind of normalization is one number per value: the group it belongs to.

const product = (lengths) => lengths.reduce((a, b) => a * b, 1);

function stridesOf(shape) {
  const strides = new Array(shape.length);
  let step = 1;
  for (let a = shape.length - 1; a >= 0; a--) {
    strides[a] = step;
    step *= shape[a];
  }
  return strides;
}

function unravel(flat, shape) {
  return stridesOf(shape).map((step, a) => Math.floor(flat / step) % shape[a]);
}

const BATCH_NORMS = ["1d", "2d", "3d", "axis"];
const RANKS = { "2d": 4, "3d": 5 };
const withoutOnes = (shape) => shape.filter((n) => n !== 1);
const isTable = (shape) => withoutOnes(shape).length <= 2;

/** The shape in which a kind sees a tensor, or null where it does not take it. */
function seenShape(kind, shape) {
  if (kind === "axis") return shape;
  if (kind in RANKS) return shape.length === RANKS[kind] ? shape : null;
  const dropped = withoutOnes(shape);
  if (kind === "1d") {
    if (shape.length === 2 || shape.length === 3) return shape;
    return dropped.length === 2 || dropped.length === 3 ? dropped : null;
  }
  if (shape.length < 2) return null;
  return isTable(shape) && dropped.length === 2 ? dropped : shape; // layer, group and instance norm
}

/** The axes that keep their own statistics. Group norm keeps blocks of axis 1, so it counts groups there. */
function keptAxes(kind, rank, chosen) {
  if (kind === "axis") return chosen.filter((a) => a < rank);
  if (kind === "layer") return [0];
  if (kind === "group" || kind === "instance") return [0, 1];
  return [1];
}

const divisors = (n) => Array.from({ length: n }, (_, i) => i + 1).filter((d) => n % d === 0);

/** Whether a value is missing, and so in no mean. */
const isMissing = (tensor, i) => tensor.omits && Number.isNaN(tensor.values[i]);

/**
 * What is normalized: {kind, shape, values, kept, blocks, ids, members}. `shape` has the batch's length on axis 0;
 * ids[i] is the group of value i, places[g] the flat numbers of group g in order, members[g] of those not missing.
 */
function makeView(tensor, kind, chosen, blocks, batch) {
  const seen = seenShape(kind, tensor.shape);
  const shape = [Math.min(batch, seen[0]), ...seen.slice(1)];
  const kept = keptAxes(kind, shape.length, chosen);
  const lengths = kept.map((a) => (kind === "group" && a === 1 ? blocks : shape[a]));
  const size = product(shape);
  const strides = stridesOf(shape);
  const ids = new Int32Array(size);
  for (let i = 0; i < size; i++) {
    let id = 0;
    kept.forEach((a, k) => {
      let index = Math.floor(i / strides[a]) % shape[a];
      if (kind === "group" && a === 1) index = Math.floor(index / (shape[1] / blocks));
      id = id * lengths[k] + index;
    });
    ids[i] = id;
  }
  const places = Array.from({ length: product(lengths) }, () => []);
  for (let i = 0; i < size; i++) places[ids[i]].push(i);
  const members = places.map((group) => group.filter((i) => !isMissing(tensor, i)));
  return { kind, shape, kept, blocks, ids, places, members, lengths, values: tensor.values.subarray(0, size), tensor };
}
