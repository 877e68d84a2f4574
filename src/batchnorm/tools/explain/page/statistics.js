// Moments and the four formulas, in float64; results of float32 data are rounded once, as the library does.

/** {count, mean, m2} of some values; the mean is corrected once, so that an offset costs no digits. */
function momentsOf(values, members) {
  const count = members.length;
  let mean = 0;
  for (const i of members) mean += values[i] / count;
  let rest = 0;
  for (const i of members) rest += values[i] - mean;
  mean += rest / count;
  let m2 = 0;
  for (const i of members) m2 += (values[i] - mean) ** 2;
  return { count, mean, m2: m2 === Infinity ? NaN : m2 }; // squares beyond float64 leave no variance
}

/** The moments of two parts together (Chan, Golub, LeVeque 1979). */
function merge(a, b) {
  if (a.count === 0) return b;
  if (b.count === 0) return a;
  const count = a.count + b.count;
  const step = b.mean - a.mean;
  return {
    count,
    mean: a.mean + (step * b.count) / count,
    m2: a.m2 + b.m2 + (step * step * a.count * b.count) / count,
  };
}

const variance = (m, correction = 0) => m.m2 / (m.count - correction);

/** One value through layer {gamma, beta, eps} with the given statistics. */
const normalized = (x, mean, variance_, eps) => (x - mean) / Math.sqrt(variance_ + eps);
const scaled = (xhat, { gamma, beta }) => gamma * xhat + beta;

/** {moments: one per group, y: one per value}. */
function normalize(view, layer) {
  const moments = view.members.map((members) => momentsOf(view.values, members));
  const y = new Float64Array(view.values.length);
  for (let i = 0; i < y.length; i++) {
    const m = moments[view.ids[i]];
    y[i] = scaled(normalized(view.values[i], m.mean, variance(m), layer.eps), layer);
  }
  return { moments, y: view.tensor.dtype === "float32" ? Float64Array.from(Float32Array.from(y)) : y };
}

/** The mean of ((x - mean)/std)³: 0 where values lie as far below the mean as above it. */
function skewness(values, members) {
  const m = momentsOf(values, members);
  const std = Math.sqrt(variance(m));
  const found = members.reduce((sum, i) => sum + ((values[i] - m.mean) / std) ** 3 / m.count, 0);
  return Math.abs(found) < 5e-4 ? 0 : found;
}

/** Pairs of `from`[i] and `to`[i] for i in `numbers`: how many keep their order, change sides, or become equal. */
function compare(from, to, numbers, different = () => true) {
  const counts = { pairs: 0, kept: 0, reversed: 0, equal: 0, parted: 0 };
  for (let a = 0; a < numbers.length; a++) {
    for (let b = a + 1; b < numbers.length; b++) {
      const [i, j] = [numbers[a], numbers[b]];
      if (!different(i, j)) continue;
      const before = Math.sign(from[i] - from[j]);
      const after = Math.sign(to[i] - to[j]);
      counts.pairs += 1;
      if (before === after) counts.kept += 1;
      else if (after === 0) counts.equal += 1;
      else if (before === 0) counts.parted += 1;
      else counts.reversed += 1;
    }
  }
  return counts;
}
