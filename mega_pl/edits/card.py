"""The card of a bank, for people; it is told from what people write themselves by a mark of its own text."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

from mega_pl.edits.status import table_row
from mega_pl.functional.text import counted

if TYPE_CHECKING:
    from mega_pl.edits.bank import EditBank

CARD = "README.md"
SHOWN = 20
"""The most edits that a card shows."""

_MARK = re.compile(r"\n<!-- card of mega_pl ([0-9a-f]{64}) -->\n")


def card(bank: EditBank, place: str = "FOLDER") -> str:
    """What a bank edits, of which model, and how it is used from the place where it lies; then a mark."""
    name = portable(str(bank.backbone["name"]))
    rows = [table_row((r.edit_id, r.filled, r.target_true, r.target_new)) for r in bank.requests[:SHOWN]]
    more = f"\n\nand {len(bank) - SHOWN} more." if len(bank) > SHOWN else ""
    base = f"base_model: {name}\n" if name else ""
    text = (
        f"---\nlibrary_name: mega_pl\n{base}tags: [knowledge-editing, steering]\n---\n\n"
        f"# {counted(len(bank), 'edit')} of {name or 'a model'}\n\n"
        f"Edits of facts by activation steering at {', '.join(map(str, bank.maps))}; the weights stay as they are.\n\n"
        "```python\nimport mega_pl\nfrom mega_pl import EditBank\n\n"
        f'backbone = mega_pl.load("{name or "MODEL"}")\n'
        f'with EditBank.from_pretrained("{place}").apply(backbone):\n    ...  # generate\n```\n\n'
        "| edit | prompt | before | after |\n| --- | --- | --- | --- |\n" + "\n".join(rows) + f"{more}\n"
    )
    return f"{text}\n<!-- card of mega_pl {_digest(text)} -->\n"


def may_write(path: Path) -> bool:
    """Whether there is no card, or one as it was written here; what somebody wrote or changed stays."""
    if not path.exists():
        return True
    try:
        text = path.read_text("utf-8")
    except (OSError, ValueError):
        return False
    mark = _MARK.search(text)
    return mark is not None and mark.end() == len(text) and mark[1] == _digest(text[: mark.start()])


def portable(name: str) -> str:
    """A model's name without the place where it lies on this machine: of a path the last part."""
    parts = re.split(r"[/\\]", name.rstrip("/\\"))
    is_path = len(parts) > 2 or "\\" in name or name.startswith(("/", "~", ".")) or ":" in parts[0]
    return parts[-1] if is_path else name


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
