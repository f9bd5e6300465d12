"""What every editor is: a way to put edits into force on a backbone and to give it back as it was."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from torch import nn

from mega_pl.asking import Edited
from mega_pl.backbone import Backbone
from mega_pl.editors.weights import restored
from mega_pl.edits import EditRequest, RoutedEdits, check_requests


class Routed(Edited):
    """A backbone with routed edits in force.

    Args:
        use: The edits and their router.
        oracle: Whether an oracle routes that knows what each test is about.
    """

    def __init__(self, use: RoutedEdits, *, oracle: bool = False) -> None:
        self.use, self.oracle = use, oracle

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

    @property
    def oracle(self) -> bool:
        """Whether it routes by what a protocol says that each test is about, and so makes sense under those that do."""
        return False

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

    def sequence(self, backbone: Backbone, requests: Sequence[EditRequest], counts: Sequence[int]) -> Generator[Edited]:
        """Put edits into force one after the other, each on top of those before it: sequential (lifelong) editing.

        Here the first k edits are put into force anew for every k, which comes to the same for an editor whose edits do
        not hang on their order.

        Args:
            backbone: The bare model, which is given back when the iterator ends or is closed.
            requests: The edits, in their order.
            counts: Numbers k of edits, ascending.

        Yields:
            The model with the first k edits in force.
        """
        for count in counts:
            with self.edit(backbone, requests[:count]) as edited:
                yield edited


@dataclass(frozen=True)
class Writing:
    """Weights that an editor may change, and how it writes into them.

    Args:
        parameters: The weights, which are given back.
        write: Puts more edits into the weights as they are by now.
    """

    parameters: Sequence[nn.Parameter]
    write: Callable[[Sequence[EditRequest]], None]


class WeightEditor(Editor):
    """Edits facts by changing weights."""

    @abstractmethod
    def writing(self, backbone: Backbone) -> Writing:
        """The weights of a backbone that are changed, and how.

        Raises:
            ValueError: If there is no such weight.
        """

    @contextmanager
    def edit(self, backbone: Backbone, requests: Sequence[EditRequest]) -> Iterator[Edited]:
        """Write edits together; see `Editor`.

        Raises:
            ValueError: If the requests do not go together, or there is no such weight.
            FloatingPointError: If an edit would leave a weight that is not finite.
        """
        check_requests(requests)
        writing = self.writing(backbone)
        with restored(writing.parameters):
            writing.write(requests)
            yield Edited()

    def sequence(self, backbone: Backbone, requests: Sequence[EditRequest], counts: Sequence[int]) -> Generator[Edited]:
        """Write edits one after the other into the weights that the last one left; see `Editor`."""
        check_requests(requests)
        writing = self.writing(backbone)
        with restored(writing.parameters):
            for count, request in enumerate(requests[: max(counts)], start=1):
                writing.write([request])
                if count in counts:
                    yield Edited()
