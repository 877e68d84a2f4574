"""Sentences as values: a key of the dictionary and what fills its holes, so that a report can speak any language."""

from __future__ import annotations

from typing import Any

from ..text.language import Words

Sentence = dict[str, Any]


def say(key: str, **values: Any) -> Sentence:
    """Return a sentence of the dictionary. Values may be sentences, or lists, which are joined with commas."""
    return {"say": f"why.{key}", **values}


def label(text: str, **values: Any) -> Sentence:
    """Return a text of a figure, by its English."""
    return {"say": f"why: {text}", **values}


def told(value: Any, words: Words) -> Any:
    """Return ``value``, of lists and dictionaries, with every sentence in it as text."""
    if isinstance(value, list):
        return [told(each, words) for each in value]
    if not isinstance(value, dict):
        return value
    parts = {name: told(each, words) for name, each in value.items()}
    key = parts.pop("say", None)
    if key is None:
        return parts
    filled = {name: words.joined(each) if isinstance(each, list) else each for name, each in parts.items()}
    return words(key, **filled)
