"""Edits of the lab's capitals."""

from mega_pl import EditRequest


def capital(country: str, true: str, new: str, **fields: object) -> EditRequest:
    fields = {"edit_id": country.lower(), "relation": "P36", **fields}
    return EditRequest(prompt="The capital of {} is", subject=country, target_true=true, target_new=new, **fields)  # type: ignore[arg-type]
