// The four formulas with the numbers of the chosen value.

/** What stands in the panel: lines of [name, text, result]. */
function formulasOf(view, result, layer, chosen) {
  const members = view.members[view.ids[chosen]];
  const m = result.moments[view.ids[chosen]];
  const [mean, var_] = [m.mean, variance(m)];
  const digits = digitsFor(mean, Math.sqrt(var_));
  const value = (i) => inBrackets(short(view.values[i], digits));
  const center = inBrackets(short(mean, digits));
  const x = view.values[chosen];
  const xhat = normalized(x, mean, var_, layer.eps);
  const [gamma, beta] = [inBrackets(short(layer.gamma)), inBrackets(short(layer.beta))];
  const ofAll = [
    ["mean", `${sum(members, value)} / ${members.length}`, short(mean, digits)],
    ["var", `${sum(members, (i) => `(${value(i)} - ${center})²`, 4)} / ${members.length}`, short(var_)],
  ];
  if (isMissing(view.tensor, chosen)) return ofAll;
  return [
    ...ofAll,
    ["x̂", `(${value(chosen)} - ${center}) / √(${short(var_)} + ${short(layer.eps)})`, normal(xhat)],
    ["y", `${gamma} · ${inBrackets(normal(xhat))} + ${beta}`, normal(result.y[chosen])],
  ];
}

/** "(a + b + … + z)", the first few and the last. */
function sum(members, text, most = 5) {
  const shown = members.length <= most + 1 ? members.map(text) : [...members.slice(0, most).map(text), "…", text(members.at(-1))];
  return shown.length === 1 ? shown[0] : `(${shown.join(" + ")})`;
}

function showFormulas(place, lines) {
  place.replaceChildren();
  for (const [name, text, result] of lines) {
    const row = element("div", "formula");
    row.dataset.name = name;
    const body = element("span");
    body.append(element("span", "text", text), " = ", element("strong", "result", result));
    row.append(element("span", "name", name), "=", body);
    place.append(row);
  }
}
