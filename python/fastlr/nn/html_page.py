"""What the pages of reports have in common: each needs nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1c2733;background:#fff;margin:0 auto;
max-width:1100px;padding:24px}
h1{font-size:24px}table{border-collapse:collapse;width:100%;font-size:13px}
h2{font-size:18px;margin-top:32px}
th,td{padding:4px 10px;text-align:right;border-bottom:1px solid #e3e8ee;white-space:nowrap}
th:first-child,td:first-child,th:last-child,td:last-child{text-align:left}
table.numbers th:last-child,table.numbers td:last-child{text-align:right}
td.note{white-space:normal;color:#5b6b7b}.scroll{overflow-x:auto}
.bar{display:inline-block;width:90px;height:9px;background:#eef2f6;margin-right:8px;
text-align:left;vertical-align:middle}
.bar i{display:block;height:9px;background:#2f74c0}.bar.error i{background:#c05a2f}
.cards{display:flex;flex-wrap:wrap;gap:12px;margin:16px 0}
.card{border:1px solid #e3e8ee;border-radius:8px;padding:10px 16px}
.card b{display:block;font-size:18px}.card span{color:#5b6b7b;font-size:13px}
svg{display:block}polyline{fill:none;stroke:#2f74c0;stroke-width:1.5}
"""


def document(title: str, body: str) -> str:
    """A page with the style of all of them; `title` is text, `body` HTML."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f"<title>fastlr: {escape(title)}</title><style>{_STYLE}</style></head><body>"
        f"{body}</body></html>\n"
    )


def cards(facts: Iterable[tuple[str, str]]) -> str:
    """Boxes with a large word and what it is."""
    boxes = "".join(f'<div class="card"><b>{b}</b><span>{s}</span></div>' for b, s in facts)
    return f'<div class="cards">{boxes}</div>'


def table(header: Iterable[str], rows: Iterable[str], style: str = "") -> str:
    """A table from rows in HTML; with the style "numbers" its last column holds numbers, too."""
    head = "".join(f"<th>{name}</th>" for name in header)
    return (
        f'<div class="scroll"><table class="{style}"><tr>{head}</tr>{"".join(rows)}</table></div>'
    )


def bar(part: float, text: str, kind: str = "") -> str:
    """A share, between 0 and 1, as a bar with a text beside it."""
    width = 100 * min(max(part, 0.0), 1.0)
    return f'<span class="bar {kind}"><i style="width:{width:.1f}%"></i></span>{text}'
