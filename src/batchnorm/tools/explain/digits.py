"""Numbers as a reader wants them: as many digits as tell values apart, and no more."""

from __future__ import annotations

import math


def short(value: float, digits: int = 5) -> str:
    """Return ``value`` with ``digits`` significant digits and no idle zeros.

    >>> short(3.0), short(5.843333), short(1e-5), short(100352.0), short(1.25e30)
    ('3', '5.8433', '1e-5', '100352', '1.25e30')
    """
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 10**7:
        return str(int(value))
    text = f"{value:.{digits}g}"
    if "e" in text:
        significand, exponent = text.split("e")
        return f"{significand}e{int(exponent)}"
    return text


def normal(value: float) -> str:
    """Return a normalized value with four decimals; an exact integer has none.

    >>> normal(-1.41421), normal(0.0), normal(-1e-17)
    ('-1.4142', '0', '0.0000')
    """
    if not math.isfinite(value) or abs(value) >= 1000 or value == int(value):
        return short(value)
    return f"{value:.4f}".replace("-0.0000", "0.0000")


def decimals(value: float) -> str:
    """Return four decimals, also for integers, so that a column of numbers lines up.

    >>> decimals(1.0), decimals(-2e-16)
    ('1.0000', '0.0000')
    """
    if not math.isfinite(value) or abs(value) >= 1000:
        return short(value)
    return f"{value:.4f}".replace("-0.0000", "0.0000")


def fitted(value: float, digits: int, most: int = 8) -> str:
    """Return ``value`` with up to ``digits`` digits, fewer where the text would exceed ``most`` characters.

    >>> fitted(-0.00055648, 4), fitted(123456.789, 9), fitted(-1.2345e-10, 4)
    ('-5.56e-4', '123456.8', '-1.2e-10')
    """
    for count in range(digits, 0, -1):
        text = short(value, count)
        if len(text) <= most:
            break
        exponent = f"{value:.{count - 1}e}".split("e")
        text = f"{exponent[0]}e{int(exponent[1])}"
        if len(text) <= most:
            break
    return text


def in_sum(value: float, digits: int = 5) -> str:
    """Return ``value`` as a term: a negative one in brackets.

    >>> in_sum(2.0), in_sum(-2.0)
    ('2', '(-2)')
    """
    text = short(value, digits)
    return f"({text})" if text.startswith("-") else text


def digits_for(mean: float, std: float) -> int:
    """Return how many digits tell values apart that lie ``std`` around ``mean``.

    >>> digits_for(3.0, 1.4), digits_for(1e6, 0.5)
    (5, 11)
    """
    if not (math.isfinite(mean) and math.isfinite(std)) or std <= 0 or mean == 0:
        return 5
    return min(13, 5 + max(0, round(math.log10(abs(mean) / std) - 0.5)))


def percent(part: float, digits: int = 4) -> str:
    """Return a part of one in percent; the blank does not break.

    >>> percent(0.25), percent(2 / 9)
    ('25\N{NO-BREAK SPACE}%', '22.22\N{NO-BREAK SPACE}%')
    """
    return f"{short(100 * part, digits)}\N{NO-BREAK SPACE}%"
