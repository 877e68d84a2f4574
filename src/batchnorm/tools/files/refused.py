"""The one exception of this package: an input or output that is refused, with the rule, what came and the fix."""

from __future__ import annotations


class Refused(ValueError):
    """A file that cannot be read or written as asked. The message is one plain paragraph."""
