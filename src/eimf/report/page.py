"""Renders the page: sections of paragraphs, tables and charts. Everything but our own SVG is escaped."""

from typing import Any, NamedTuple

from jinja2 import Environment


class Cell(NamedTuple):
    """A table cell with more than its text."""

    text: str
    style: str = ""
    """`best` (bold), `second` (underlined) or nothing."""
    link: str = ""


class Section(NamedTuple):
    """A part of the page."""

    title: str
    text: tuple[str, ...] = ()
    head: tuple[str, ...] = ()
    rows: tuple[tuple[Any, ...], ...] = ()
    charts: tuple[str, ...] = ()
    code: str = ""
    fold: bool = False
    """Whether the table is folded, and opens on a click."""


TEMPLATE = """{% macro show(cell) %}{% if cell.text is not defined %}{{ cell }}{% elif cell.link %}
<a href="{{ cell.link }}">{{ cell.text }}</a>{% else %}<span class="{{ cell.style }}">{{ cell.text }}</span>{% endif %}
{% endmacro %}<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>{{ title }}</title><style>
:root{color-scheme:light dark;--ink:#1b1f24;--paper:#fff;--rule:#d0d7de}
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--paper:#0d1117;--rule:#30363d}}
h1{overflow-wrap:anywhere}
body{color:var(--ink);background:var(--paper);font:16px/1.5 system-ui,sans-serif;
max-width:52rem;margin:auto;padding:1rem}
svg{max-width:100%;height:auto;display:block}.wide{overflow-x:auto}pre{overflow-x:auto;font-size:.8rem}
table{border-collapse:collapse}td,th{padding:.2rem .7rem;border-bottom:1px solid var(--rule)}
td,th{text-align:right;white-space:nowrap}
.best{font-weight:700}.second{text-decoration:underline}a{color:inherit}
td:first-child,th:first-child{text-align:left;white-space:normal;min-width:7rem;position:sticky;left:0;
background:var(--paper)}.wide svg{min-width:30rem}
h2{margin-top:2rem}
</style></head><body><h1>{{ title }}</h1>
{% for one in sections %}<section><h2>{{ one.title }}</h2>
{% for line in one.text %}<p>{{ line }}</p>{% endfor %}
{% if one.rows %}{% if one.fold %}<details><summary>{{ one.rows|length }} rows</summary>{% endif %}
<div class="wide"><table><thead><tr>
{% for name in one.head %}<th>{{ name }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in one.rows %}<tr>{% for cell in row %}<td>{{ show(cell) }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>{% if one.fold %}</details>{% endif %}{% endif %}
{% for chart in one.charts %}<figure class="wide" style="margin:1rem 0">{{ chart|safe }}</figure>{% endfor %}
{% if one.code %}<details{% if not one.rows and one.text %} open{% endif %}><summary>commands and settings</summary>
<pre>{{ one.code }}</pre></details>{% endif %}</section>
{% endfor %}</body></html>
"""


def number(value: Any) -> str:
    """A number as the tables show it: whole ones without decimals; an empty text for None."""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4f}" if isinstance(value, float) else "" if value is None else str(value)


def render(title: str, sections: list[Section]) -> str:
    """The page as HTML."""
    return Environment(autoescape=True).from_string(TEMPLATE).render(title=title, sections=sections)
