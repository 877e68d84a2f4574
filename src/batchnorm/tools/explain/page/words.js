// How the page says the sentences of the dictionary, WORDS, in English and Chinese. {name} is filled in.

/** The blank that Chinese puts between its characters and others; as in language.py. */
function blank(before = "", after = "") {
  const [chinese, other] = [/[\u4e00-\u9fff]/, /[\w'"%()√-]/];
  return (chinese.test(before) && other.test(after)) || (other.test(before) && chinese.test(after)) ? " " : "";
}

/** The words of a language as functions would be: fill("lit", {group: …}); the text for {Group} begins with a capital. */
function wordsOf(language) {
  const texts = WORDS[language];
  const filled = (name, values) => {
    const text = String(values[name.toLowerCase()] ?? values[name]);
    return /^[A-Z]/.test(name) ? text[0].toUpperCase() + text.slice(1) : text;
  };
  const fill = (key, values = {}) =>
    texts[key].replace(/\{(\w+)\}/g, (hole, name, at, template) => {
      const text = filled(name, values);
      return blank(template[at - 1], text[0]) + text + blank(text.at(-1), template[at + hole.length]);
    });
  const sentences = (parts) => parts.filter((part) => part !== "").join(language === "zh" ? "" : " ");
  return { fill, sentences, averagedToo: texts.averagedToo, language };
}

/** What a sentence calls group g of a view. */
function groupName(view, g, fill, language) {
  const index = unravel(g, view.lengths);
  const comma = language === "zh" ? "\uff0c" : ", ";
  const one = (word, n) => `${fill(word)} ${n}`;
  if (view.kept.length === 0) return fill("everything");
  if (view.kind === "layer") return one("sample", g);
  if (view.kind === "group") return `${one("sample", index[0])}${comma}${one("group", index[1])}`;
  if (view.kind === "instance") return `${one("sample", index[0])}${comma}${one("channel", index[1])}`;
  const names = view.tensor.names;
  const known = { index: view.kept.length === 1 ? g : `(${index.join(", ")})` };
  if (!names || view.kept.length !== 1 || names.length !== view.lengths[0]) return fill(`${unitOf(view)}_number`, known);
  const alone = names[g].trim() !== "" && names.indexOf(names[g]) === names.lastIndexOf(names[g]);
  return fill(`${unitOf(view)}_${alone ? "name" : "both"}`, { ...known, name: `'${names[g]}'` });
}

/** "column" where the data is a table, as in the terminal report; else "channel", or the other kinds' unit. */
function unitOf(view) {
  if (!BATCH_NORMS.includes(view.kind)) return view.kind === "layer" ? "sample" : view.kind === "group" ? "group" : "channel";
  const long = view.shape.map((n, a) => a).filter((a) => view.shape[a] > 1 || view.kept.includes(a));
  return view.kept.length === 1 && long.length <= 2 && long.at(-1) === view.kept[0] ? "column" : "channel";
}
