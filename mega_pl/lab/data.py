"""The lab's records as Lightning data."""

import tempfile
from dataclasses import replace
from pathlib import Path

from mega_pl.asking import argmax_tokens
from mega_pl.backbone import load
from mega_pl.data.datamodule import EditDataModule
from mega_pl.data.reading import DataFile, read
from mega_pl.edits.request import EditCase, EditRequest
from mega_pl.lab.records import Split, write_records


class LabDataModule(EditDataModule):
    """The lab's edits, through the same files and readers as the published benchmarks.

    Args:
        split: ``dev``, on which defaults are chosen, or ``test``, for tables.
        plain: Whether edits say no more of themselves than prompt, subject, objects and relation, as published records
            do, and get the phrasings and implications of their relation.
        known_by: Name of a model that must give an edit's true object for the edit to be taken, as in `load`.
        limit: The most edits to take, from the front.
        edits_per_batch: Edits that are fitted, or judged, together.
    """

    def __init__(
        self,
        split: Split = "test",
        plain: bool = False,
        known_by: str | None = None,
        limit: int | None = None,
        edits_per_batch: int = 8,
    ) -> None:
        super().__init__(
            limit=limit,
            edits_per_batch=edits_per_batch,
            relation_phrasings=plain,
            relation_implications=plain,
        )
        self.split: Split = split
        self.plain, self.known_by = plain, known_by

    def read(self) -> list[EditCase]:
        """Write the split's two files and read them again."""
        with tempfile.TemporaryDirectory() as folder:
            counterfact, rippleedits = write_records(Path(folder), self.split)
            cases: list[EditCase] = read([DataFile(counterfact, "counterfact"), DataFile(rippleedits, "rippleedits")])
        if self.plain:
            cases = [replace(case, request=_plain(case.request)) for case in cases]
        return cases if self.known_by is None else _known(cases, self.known_by)


def _plain(request: EditRequest) -> EditRequest:
    return replace(request, phrasings=(), implications=(), contrasts=(), aliases=())


def _known(cases: list[EditCase], name: str) -> list[EditCase]:
    """The cases whose true object begins with the token that a model gives."""
    backbone = load(name)
    tokens = argmax_tokens(backbone, [case.request.filled for case in cases])
    return [
        case
        for case, token in zip(cases, tokens, strict=True)
        if token == backbone.answer_ids(case.request.filled, case.request.target_true)[0]
    ]
