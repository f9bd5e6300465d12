"""What all parts of the page share: whose tab it is, refusals as one line, and bars."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from typing import Any, Literal

import gradio as gr

from mega_pl.errors import MegaError
from mega_pl.look.studio import Desk, Stopped, Studio

MARKUP = frozenset("&<>!#$()*:@[\\]^_`{}~|")

LINE = 300
"""The most letters of a refusal."""

SECONDS = 15
"""How long a refusal is shown."""


@dataclass(frozen=True)
class Part:
    """A part of the page.

    Args:
        shown: Components that hang on the tab's edits.
        refresh: What they show of a desk, one update each.
        changes: Events after which the tab's edits may be others.
    """

    shown: Sequence[Any] = ()
    refresh: Callable[[Desk], Sequence[Any]] = lambda _: ()
    changes: Sequence[Any] = field(default_factory=list)


def desk_of(studio: Studio, key: str, request: gr.Request) -> Desk:
    """The desk of a tab: by the key that the browser keeps for it, else by its connection."""
    return studio.desk(key or str(request.session_hash))


def literal(text: str, but: str = "") -> str:
    """A text for where Markdown or HTML is shown, to be read as it is: what a bank or a run says is not trusted.

    Args:
        text: The text.
        but: Signs that keep their meaning.

    >>> literal("![x](http://a.b) <i>")
    '&#33;&#91;x&#93;&#40;http&#58;//a.b&#41; &#60;i&#62;'
    """
    return "".join(f"&#{ord(sign)};" if sign in MARKUP and sign not in but else sign for sign in text)


class Missing(MegaError):
    """What a person has to say first."""


@contextmanager
def refusals() -> Iterator[None]:
    """Show what is refused as one line on the page, which goes on; work that was stopped ends without a word more.

    A warning of Gradio's: its errors would hide the fields that a function was to fill.
    """
    try:
        yield
    except Stopped:
        gr.Info("Stopped.")
    except (MegaError, OSError) as error:
        reason = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
        line = " ".join(reason.split()).strip("'\"")
        gr.Warning(literal(line if len(line) <= LINE else f"{line[:LINE]}…"), duration=SECONDS)


def small(label: str, variant: Literal["primary", "secondary", "stop"] = "secondary", **options: Any) -> gr.Button:  # noqa: ANN401
    """A button that is no wider than it must be."""
    return gr.Button(label, variant=variant, size="md", scale=0, min_width=120, **options)


def stop_button(studio: Studio, key: Any) -> gr.Button:  # noqa: ANN401
    """A button that stops the tab's work."""

    def stop(key: str, request: gr.Request) -> None:
        desk_of(studio, key, request).stop()

    button = small("Stop")
    button.click(stop, key, None, show_progress="hidden", concurrency_limit=None)
    return button


def bars(caption: str, columns: Sequence[str], rows: Sequence[tuple[Any, ...]], most: float | None = None) -> str:
    """A table with a bar behind each number; those below zero are of another colour, minus infinity is a veto.

    Args:
        caption: Of the table.
        columns: Their names.
        rows: Each a name and its numbers.
        most: What a bar over the whole cell stands for; by default the largest number.
    """
    if not rows:
        return ""
    finite = [abs(value) for _, *values in rows for value in values if math.isfinite(value)]
    most = most or max(finite, default=0.0) or 1.0
    head = "".join(f"<th scope='col'>{escape(column)}</th>" for column in columns)
    head = f"<tr><td></td>{head}</tr>" if any(columns) else ""
    body = "".join(
        f"<tr><th scope='row'>{escape(str(name))}</th>{''.join(_bar(value, most) for value in values)}</tr>"
        for name, *values in rows
    )
    return f"<table class='bars'><caption>{escape(caption)}</caption>{head}{body}</table>"


def _bar(value: float, most: float) -> str:
    if math.isinf(value):
        return "<td>veto</td>"
    kind, text = "below" if value < 0 else "above", f"{value:.3f}".replace("-0.000", "0.000")
    return f"<td><span class='{kind}' style='width:{100 * abs(value) / most:.1f}%'></span>{text}</td>"


CSS = """
table.bars { width: 100%; display: table !important; border-collapse: collapse; font-size: .875rem }
table.bars caption { text-align: left; font-weight: 600; padding-bottom: .25rem }
table.bars, table.bars * { border: 0 !important; background: none; color: inherit }
table.bars th { text-align: left; font-weight: 400; padding: .125rem .5rem .125rem 0 }
table.bars td { position: relative; padding: .125rem .375rem; width: 30%; font-variant-numeric: tabular-nums }
table.bars span { position: absolute; left: 0; top: 10%; height: 80%; opacity: .35; border-radius: 2px; min-width: 1px }
.dark table.bars span { opacity: .75 }
mark { background: #f2cc8f; color: #1f2937; padding: 0 .125rem; border-radius: 2px }
table.bars .above { background: #2a6f97 }
table.bars .below { background: #c44536 }
#scores table { display: block; overflow-x: auto }
#scores :is(th, td) { white-space: nowrap }
footer { display: none }
"""
