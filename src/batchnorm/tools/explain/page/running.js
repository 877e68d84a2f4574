// A layer in training: batch after batch, its running statistics move towards those of the data.

/**
 * The running statistics of the channel of value `at`, for `steps` batches of consecutive samples, wrapping around.
 * momentum null is the mean over all batches. Null where no channel outlives a batch, or a batch has one value.
 */
function trainChannel(tensor, view, at, momentum, steps) {
  if (!BATCH_NORMS.includes(view.kind) || view.kept.includes(0)) return null;
  const samples = samplesOf(tensor, view, at);
  const batch = view.shape[0];
  const rows = [];
  let [mean, unbiased, biased] = [0, 1, 1];
  for (let t = 0; t < steps; t++) {
    let m = { count: 0, mean: 0, m2: 0 };
    for (let k = 0; k < batch; k++) m = merge(m, samples[(t * batch + k) % samples.length]);
    if (m.count < 2) return { refused: m.count };
    const share = momentum === null ? 1 / (t + 1) : momentum;
    mean += share * (m.mean - mean);
    unbiased += share * (variance(m, 1) - unbiased);
    biased += share * (variance(m) - biased);
    rows.push({ batchMean: m.mean, batchVar: variance(m), mean, unbiased, biased });
  }
  return { rows, whole: samples.reduce(merge) };
}

/** The moments of one channel in every sample of the tensor. */
function samplesOf(tensor, view, at) {
  const shape = [seenShape(view.kind, tensor.shape)[0], ...view.shape.slice(1)];
  const perSample = product(view.shape.slice(1));
  const inside = view.places[view.ids[at]].filter((i) => i < perSample); // the channel's places in sample 0
  return Array.from({ length: shape[0] }, (_, n) => {
    const there = inside.filter((i) => !isMissing(tensor, n * perSample + i));
    return momentsOf(tensor.values.subarray(n * perSample), there);
  });
}
