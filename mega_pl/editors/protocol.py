"""What every editor is: a way to put edits into force on a backbone and to give it back as it was."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager

from mega_pl.asking import Edited
from mega_pl.backbone import Backbone
from mega_pl.edits import EditRequest, RoutedEdits


class Routed(Edited):
    """A backbone with routed edits in force.

    Args:
        use: The edits and their router.
    """

    def __init__(self, use: RoutedEdits) -> None:
        self.use = use

    @property
    def fired(self) -> list[str | None]:
        """The edit that each prompt of the last batch got, or None."""
        return self.use.fired

    def route(self, edits: Sequence[str | None] | None = None, *, forced: bool = False) -> None:
        """Decide which edit each row gets; see `Edited`."""
        self.use.fix(edits, forced=forced)


class Editor(ABC):
    """Edits facts of a backbone for the time of a ``with`` block.

    Its `repr` tells all that decides its edits.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """The method in files and tables, such as "rome"."""

    @abstractmethod
    def edit(self, backbone: Backbone, requests: Sequence[EditRequest]) -> AbstractContextManager[Edited]:
        """Put some edits into force together.

        At the end of the block, also after an exception, every weight is what it was to the bit and no hook is left.

        Args:
            backbone: The bare model.
            requests: The edits, at least one, with different ids.

        Raises:
            ValueError: If there is no edit, an id comes twice, or the backbone lacks what the method needs.
        """
