"""What the report of `explain` says in a terminal."""

EXPLAIN: dict[str, tuple[str, str]] = {}
