"""HTML for notebooks: small tables and folded trees, every text escaped and free of secrets."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from scaling.redaction import redact


def table(head: Sequence[str], rows: Iterable[Sequence[object]], title: str = "") -> str:
    """One row per item of `rows`; an empty `head` leaves the heading out."""
    lines = [f"<b>{_text(title)}</b>" if title else "", "<table>"]
    if head:
        lines.append(f"<tr>{''.join(f'<th>{_text(cell)}</th>' for cell in head)}</tr>")
    for row in rows:
        cells = "".join(f'<td style="text-align:left">{_text(cell)}</td>' for cell in row)
        lines.append(f"<tr>{cells}</tr>")
    return "\n".join([*filter(None, lines), "</table>"])


def folded(title: str, tree: Mapping[str, Any], *, is_open: bool = False) -> str:
    """A nested mapping: its plain values as a table, each inner mapping folded under its own
    name."""
    plain = {key: value for key, value in tree.items() if not isinstance(value, Mapping)}
    inner = {key: value for key, value in tree.items() if isinstance(value, Mapping)}
    parts = [table((), plain.items())] if plain else []
    parts += [folded(key, value) for key, value in inner.items()]
    indented = f'<div style="margin-left:1em">{"".join(parts)}</div>'
    tag = "details open" if is_open else "details"
    return f"<{tag}><summary>{_text(title)}</summary>{indented}</details>"


def _text(value: object) -> str:
    """`value` as YAML writes it, escaped."""
    if value is None:
        text = "null"
    elif isinstance(value, bool):
        text = str(value).lower()
    else:
        text = str(value)
    return html.escape(redact(text))
