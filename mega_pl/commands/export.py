"""``train.py export``: the edits of a bank in the formats of other runtimes."""

from mega_pl.edits import EditBank
from mega_pl.edits.export import INDEX, Form, export_bank
from mega_pl.functional.text import counted


def export(
    bank: str,
    output: str,
    format: Form,
    edits: list[str | int] | str | None = None,
    lossy: bool = False,
    max_gib: float = 8.0,
) -> None:
    """Write the edits of a bank for other runtimes, a file an edit.

    Which edit a prompt gets is decided by the caller of the other runtime; ``index.json`` tells which file is whose.

    Args:
        bank: The bank's folder, or its repository on the hub.
        output: A new or an empty folder.
        format: ``affine`` for dense maps h -> W h + b in safetensors, ``easysteer`` for requests of EasySteer,
            ``gguf`` for control vectors of llama.cpp.
        edits: Which edits, one or a list; by default all.
        lossy: Whether what the format cannot express may be lost; also ``--lossy`` alone.
        max_gib: The most that dense maps may take, in GiB.
    """
    source = EditBank.from_pretrained(bank)
    listed = [edits] if isinstance(edits, str) else edits
    chosen = None if listed is None else [str(edit_id) for edit_id in listed]
    lost = export_bank(source, output, format, edits=chosen, lossy=lossy, max_gib=max_gib)
    count = len(source) if chosen is None else len(chosen)
    print(f"Written to {output}: {counted(count, 'edit')} as {format}, {INDEX}" + (f"\nlost: {lost}." if lost else ""))
