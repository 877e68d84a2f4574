// Numbers as texts, with the rules of the terminal report (digits.py), so that both show the same digits.

const sameDigits = (value) => String(value).replace("Infinity", "inf").replace("NaN", "nan");

/** Like toFixed, but ties go to even, as in Python. A number is a tie only if it is odd / 2^(places + 1). */
function fixed(value, places) {
  if (Math.abs((value * 2 ** (places + 1)) % 2) !== 1) return value.toFixed(places);
  const even = 2 * Math.round((Math.abs(value) * 10 ** places) / 2);
  return (Math.sign(value) * even / 10 ** places).toFixed(places);
}

/** Up to `digits` significant digits and no idle zeros: 3, 5.8433, 1e-5. */
function short(value, digits = 5) {
  if (!Number.isFinite(value)) return sameDigits(value);
  if (Number.isInteger(value) && Math.abs(value) < 1e7) return String(value === 0 ? 0 : value);
  const [significand, exponent] = value.toExponential(digits - 1).split("e");
  const trimmed = (text) => (text.includes(".") ? text.replace(/\.?0+$/, "") : text);
  if (exponent < -4 || exponent >= digits) return `${trimmed(significand)}e${Number(exponent)}`;
  return trimmed(fixed(value, digits - 1 - Number(exponent)));
}

/** A normalized value with four decimals; an exact integer has none. */
function normal(value) {
  if (!Number.isFinite(value) || Math.abs(value) >= 1000 || Number.isInteger(value)) return short(value);
  return decimals(value);
}

/** Four decimals, also for integers. */
function decimals(value) {
  if (!Number.isFinite(value) || Math.abs(value) >= 1000) return short(value);
  return fixed(value, 4).replace("-0.0000", "0.0000");
}

/** How many digits tell values apart that lie std around mean. */
function digitsFor(mean, std) {
  if (!Number.isFinite(mean) || !Number.isFinite(std) || std <= 0 || mean === 0) return 5;
  const lost = Math.log10(Math.abs(mean) / std) - 0.5;
  return Math.min(13, 5 + Math.max(0, Math.round(lost)));
}

const inBrackets = (text) => (text.startsWith("-") ? `(${text})` : text);
const many = (count) => (count < 10000 ? String(count) : count.toLocaleString("en-US").replaceAll(",", "\u00a0"));

/** A number for a narrow cell of a drawing: at most five characters where that is possible. */
function narrow(value) {
  for (const digits of [4, 3, 2, 1]) {
    const text = short(value, digits);
    if (text.length <= 5) return text;
  }
  return short(value, 1);
}
