"""IKE: the new fact told before each prompt, after demonstrations of how to use one (arXiv:2305.12740)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

from mega_pl.asking import Edited, position_limit
from mega_pl.backbone import Backbone
from mega_pl.data.datamodule import EditDataModule
from mega_pl.editors.protocol import Editor
from mega_pl.editors.retrieval import Similarity, similarity
from mega_pl.edits import EditCase, EditRequest, check_requests
from mega_pl.edits.request import SLOT
from mega_pl.errors import MegaValueError

NEW_FACT = "New Fact: {fact}\nPrompt: {prompt}"
"""EasyEdit's template of IKE."""


@dataclass(frozen=True, kw_only=True)
class IkeConfig:
    """Settings of IKE.

    Args:
        demonstrations: The most demonstrations before a prompt.
        encoder: Folder or hub name of a sentence encoder that tells which demonstrations are like an edit (the
            authors' is ``sentence-transformers/all-MiniLM-L6-v2``); None compares words.
        reserve: Tokens to leave free for an answer where the model reads a limited number.
    """

    demonstrations: int = 16
    encoder: str | None = None
    reserve: int = 16

    def __post_init__(self) -> None:
        for name in ("demonstrations", "reserve"):
            if getattr(self, name) < 0:
                raise MegaValueError(f"`{name}` must be at least 0, but got {getattr(self, name)}.")


class Ike(Editor):
    """Edits in context; neither weights nor activations are touched.

    Args:
        config: Settings.
        pool: Other edits, to make demonstrations from: each shows its prompt and another phrasing with the new object,
            and a neighbour with its true one. Without any the new fact is told alone.
    """

    name: ClassVar[str] = "ike"

    def __init__(self, config: IkeConfig | None = None, pool: Sequence[EditCase] | EditDataModule = ()) -> None:
        self.config = config or IkeConfig()
        if isinstance(pool, EditDataModule):
            pool.setup("fit")
            pool = pool.cases
        self.pool = tuple(pool)
        self.demonstrations = tuple(text for case in self.pool for text in demonstrations(case))
        self._alike = similarity(self.demonstrations, self.config.encoder) if self.demonstrations else None

    def __repr__(self) -> str:
        return f"Ike({self.config!r}, pool={self.pool!r})"

    @contextmanager
    def edit(self, backbone: Backbone, requests: Sequence[EditRequest]) -> Iterator[Edited]:
        """Put edits into force; see `Editor`.

        Raises:
            ValueError: If the requests do not go together, or one is in the pool.
        """
        check_requests(requests)
        known = {text for case in self.pool for text in (case.request.edit_id, case.request.filled)}
        for request in requests:
            if {request.edit_id, request.filled} & known:
                raise MegaValueError(
                    f"`pool` must not hold an edit that is put into force, but has {request.edit_id!r} "
                    f"({request.filled!r}); make it from other records."
                )
        yield Told(backbone, requests, self)

    def most_like(self, request: EditRequest) -> list[str]:
        """The demonstrations for an edit, the most similar first."""
        if self._alike is None:
            return []
        query = f"{with_new_fact(request, request.filled)}\n\n"
        ranked = self._alike(query).argsort(descending=True, stable=True)
        return [self.demonstrations[i] for i in ranked[: self.config.demonstrations].tolist()]


class Told(Edited):
    """A backbone that is told the new fact that a prompt is most like."""

    def __init__(self, backbone: Backbone, requests: Sequence[EditRequest], ike: Ike) -> None:
        self.backbone, self.requests = backbone, requests
        self.shown = [ike.most_like(request) for request in requests]
        self.room = position_limit(backbone)
        self.reserve = ike.config.reserve
        self._alike: Similarity | None = None
        if len(requests) > 1:
            self._alike = similarity([request.filled for request in requests], ike.config.encoder)

    def prompt(self, text: str) -> str:
        """Demonstrations, as many of the most similar as there is room for, the new fact and the prompt."""
        best = 0 if self._alike is None else int(self._alike(text).argmax())
        question, shown = with_new_fact(self.requests[best], text), list(self.shown[best])
        while shown and not self._fits("".join(shown) + question):
            shown.pop()
        return "".join(shown) + question

    def _fits(self, text: str) -> bool:
        return self.room is None or len(self.backbone.tokenizer(text)["input_ids"]) + self.reserve <= self.room


def with_new_fact(request: EditRequest, prompt: str) -> str:
    """A prompt after an edit's new fact."""
    return NEW_FACT.format(fact=f"{request.filled} {request.target_new}", prompt=prompt)


def demonstrations(case: EditCase) -> tuple[str, ...]:
    """What an edit shows: itself, itself in other words, and a neighbour that it leaves alone, as far as known."""
    request = case.request
    others = [*case.paraphrase_prompts, *(p.replace(SLOT, request.subject) for p in request.phrasings)]
    rephrased = [(prompt, request.target_new) for prompt in others if prompt != request.filled][:1]
    neighbours = [(prompt, request.target_true) for prompt in case.neighborhood_prompts[:1]]
    pairs = [(request.filled, request.target_new), *rephrased, *neighbours]
    return tuple(f"{with_new_fact(request, prompt)} {answer}\n\n" for prompt, answer in pairs)
