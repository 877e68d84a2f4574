"""The frame of the report: markup and style sheet, for wide and narrow windows, light and dark."""

from __future__ import annotations

#: Filled by ``str.format``, which is why the braces of the style sheet are doubled.
FRAME = """<!DOCTYPE html>
<html lang="{lang}">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
:root {{
  --paper: #ffffff; --ink: #22303c; --quiet: #5a6874; --line: #d9e0e6; --pale: #f4f7f9; --link: #1f6fb4;
  --yes: #1d7a55; --partly: #8a6100; --no: #b3400f; --tie: #5a6874;
}}
@media (prefers-color-scheme: dark) {{
  :root {{
    --paper: #14191e; --ink: #dde4ea; --quiet: #9aa8b4; --line: #34404a; --pale: #1d242b; --link: #6cb2eb;
    --yes: #58c797; --partly: #e0b04a; --no: #f08a5d; --tie: #9aa8b4;
  }}
}}
* {{ box-sizing: border-box; }}
body {{ margin: 0 auto; padding: 1.5rem 1.25rem 4rem; max-width: 62rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, sans-serif; overflow-wrap: break-word; }}
h1 {{ font-size: 1.9rem; line-height: 1.2; margin: .5rem 0; }}
h2 {{ font-size: 1.35rem; line-height: 1.3; margin: 0 0 .25rem; }}
p {{ margin: .5rem 0; max-width: 46rem; }}
a {{ color: var(--link); }}
header p, .paper, .question {{ color: var(--quiet); }}
section {{ border-top: 1px solid var(--line); margin-top: 2.2rem; padding-top: 1.6rem; }}
nav ul {{ list-style: none; margin: 1rem 0; padding: 0; }}
nav li {{ margin: .3rem 0; }}
.badge {{ display: inline-block; border: 1px solid currentColor; border-radius: 1rem; padding: 0 .6rem;
  font-size: .8rem; font-weight: 600; line-height: 1.5; vertical-align: middle; white-space: nowrap; }}
.yes {{ color: var(--yes); }} .partly {{ color: var(--partly); }} .no {{ color: var(--no); }}
.tie {{ color: var(--tie); }}
.question {{ font-style: italic; }}
.paper {{ font-size: .9rem; }}
.finding {{ background: var(--pale); border-left: 4px solid var(--link); padding: .6rem .9rem; max-width: none; }}
.quick {{ border: 1px solid var(--partly); padding: .5rem .9rem; }}
.pictures {{ display: flex; flex-wrap: wrap; gap: .8rem; margin: 1rem 0; }}
.pictures img {{ flex: 1 1 24rem; min-width: 0; max-width: 30rem; width: 100%; height: auto; align-self: flex-start;
  background: #ffffff; border: 1px solid var(--line); border-radius: .5rem; padding: .3rem; }}
summary {{ cursor: pointer; color: var(--link); }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: .85rem; margin: 1rem 0; font-variant-numeric: tabular-nums; }}
caption {{ text-align: left; font-weight: 600; padding-bottom: .3rem; }}
th, td {{ text-align: right; padding: .15rem .9rem .15rem 0; white-space: nowrap;
  border-bottom: 1px solid var(--line); }}
th:first-child {{ text-align: left; }}
dl {{ display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; font-size: .85rem; }}
dt {{ color: var(--quiet); }}
dd {{ margin: 0; min-width: 0; }}
code {{ font-size: .9em; background: var(--pale); padding: .1em .3em; border-radius: .2em; }}
@media (max-width: 30rem) {{ dl {{ grid-template-columns: 1fr; }} dt {{ margin-top: .4rem; }} }}
</style>
</head>
<body>
<header>
<h1>{title}</h1>
{facts}
<p>{intro}</p>
</header>
<main>
<nav aria-label="{label}">{contents}</nav>
{sections}
</main>
</body>
</html>
"""
