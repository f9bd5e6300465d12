"""The lab's records as Lightning data."""

import tempfile
from pathlib import Path

from mega_pl.data.counterfact import read_counterfact
from mega_pl.data.datamodule import EditDataModule
from mega_pl.data.join import join
from mega_pl.data.rippleedits import read_rippleedits
from mega_pl.edits.request import EditCase
from mega_pl.lab.records import Split, write_records


class LabDataModule(EditDataModule):
    """The lab's edits, through the same files and readers as the published benchmarks.

    Args:
        split: ``dev``, on which defaults are chosen, or ``test``, for tables.
        limit: The most edits to take, from the front.
        edits_per_batch: Edits that are fitted together.
        tests_per_batch: Prompts that are evaluated together.
    """

    def __init__(
        self,
        split: Split = "test",
        limit: int | None = None,
        edits_per_batch: int = 8,
        tests_per_batch: int = 128,
    ) -> None:
        super().__init__(limit=limit, edits_per_batch=edits_per_batch, tests_per_batch=tests_per_batch)
        self.split: Split = split

    def read(self) -> list[EditCase]:
        """Write the split's two files and read them again."""
        with tempfile.TemporaryDirectory() as folder:
            counterfact, rippleedits = write_records(Path(folder), self.split)
            return join(read_counterfact(counterfact), read_rippleedits(rippleedits))
