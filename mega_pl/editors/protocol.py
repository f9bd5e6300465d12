"""What every editor is: a way to put edits into force on a backbone and to give it back as it was."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager

from mega_pl.backbone import Backbone
from mega_pl.edits import EditRequest, RoutedEdits


class Edited:
    """A backbone with edits in force, asked as it is; editors that ask or route in another way derive from it."""

    def prompt(self, text: str) -> str:
        """The text that the model must be given to ask a prompt; it ends as the prompt does."""
        return text

    def route(self, edits: Sequence[str | None] | None = None, *, forced: bool = False) -> None:
        """Decide which edit each row of the batches to come gets; edits that are not routed act on every prompt.

        Args:
            edits: For each row an edit, or None for none, instead of asking the router. None asks it again.
            forced: Whether the router must choose an edit for every prompt.

        Raises:
            KeyError: If there is no such edit.
        """

    @property
    def fired(self) -> list[str | None] | None:
        """The edit that each prompt of the last batch got, or None where none did; None where edits are not routed."""
        return None


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
