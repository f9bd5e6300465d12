"""New facts told before the prompts that ask for them, and no others: retrieval instead of an edit."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import ClassVar, Literal, get_args

from mega_pl.asking import Edited
from mega_pl.backbone import Backbone
from mega_pl.data.relations import relations
from mega_pl.editors.ike import with_new_fact
from mega_pl.editors.protocol import Editor
from mega_pl.editors.retrieval import similarity
from mega_pl.edits import NO_EDIT, ContentRouter, EditRequest, RouterConfig, check_requests
from mega_pl.edits.routing import Prompts
from mega_pl.errors import MegaValueError

Retriever = Literal["router", "similarity"]


@dataclass(frozen=True, kw_only=True)
class InContextConfig:
    """Settings of retrieval in context.

    Args:
        retriever: ``router`` tells the fact of the edit that MEGA's router chooses, or none; ``similarity`` that of the
            edit whose fact is most like the prompt.
        router: How the router decides.
        encoder: Folder or hub name of a sentence encoder that tells how alike texts are; None compares words.
        threshold: The least cosine at which a fact is told; -1 always tells one.
    """

    retriever: Retriever = "router"
    router: RouterConfig = field(default_factory=RouterConfig)
    encoder: str | None = None
    threshold: float = 0.5

    def __post_init__(self) -> None:
        if self.retriever not in get_args(Retriever):
            names = ", ".join(get_args(Retriever))
            raise MegaValueError(f"`retriever` must be one of {names}, but got {self.retriever!r}.")
        if not -1 <= self.threshold <= 1:
            raise MegaValueError(f"`threshold` must lie in [-1, 1], but got {self.threshold}.")


@dataclass(frozen=True, eq=False)
class InContext(Editor):
    """Tells a prompt the new fact that it asks for, without demonstrations; no weight and no activation changes."""

    name: ClassVar[str] = "in-context"
    config: InContextConfig = field(default_factory=InContextConfig)

    @contextmanager
    def edit(self, backbone: Backbone, requests: Sequence[EditRequest]) -> Iterator[Edited]:
        """Put edits into force; see `Editor`.

        Raises:
            ValueError: If the requests do not go together.
        """
        check_requests(requests)
        make = self._router if self.config.retriever == "router" else self._nearest
        yield Retrieved(requests, make(backbone, requests))

    def _router(self, backbone: Backbone, requests: Sequence[EditRequest]) -> Callable[[str], int]:
        router = ContentRouter.fit(backbone, requests, list(relations().values()), self.config.router)

        def find(text: str) -> int:
            encoded = backbone.encode([text])
            return router.route(Prompts(backbone, encoded.inputs, encoded.last))[0].edit

        return find

    def _nearest(self, _: Backbone, requests: Sequence[EditRequest]) -> Callable[[str], int]:
        alike = similarity([f"{r.filled} {r.target_new}" for r in requests], self.config.encoder)

        def find(text: str) -> int:
            cosines = alike(text)
            return int(cosines.argmax()) if float(cosines.max()) >= self.config.threshold else NO_EDIT

        return find


class Retrieved(Edited):
    """A backbone whose prompts are told the fact of the edit that a retriever finds.

    Args:
        requests: The edits.
        find: From a prompt to the index of the edit that it asks for, or `NO_EDIT`.
    """

    def __init__(self, requests: Sequence[EditRequest], find: Callable[[str], int]) -> None:
        self._requests, self._find = requests, cache(find)  # a prompt is asked under several measures

    def prompt(self, text: str) -> str:
        """The prompt, after the new fact that it asks for if it asks for one."""
        edit = self._find(text)
        return text if edit == NO_EDIT else with_new_fact(self._requests[edit], text)
