"""Standing guard while a model writes: the old object does not come back where the new one was asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import Cache

from mega_pl.asking import greedy_ids
from mega_pl.backbone import Backbone, Reading, forked
from mega_pl.edits.request import EditRequest
from mega_pl.functional.text import find_name, without_names

LIKELY = 0.1
"""Probability from which a token counts as about to be written, also where it is not the likeliest."""

LEAST = math.log(LIKELY)
"""A token's logit below the highest one by more than this leaves it less than likely."""


@dataclass(frozen=True, eq=False)
class Place:
    """Where the guard looks.

    Args:
        reading: What the pass reads.
        row: Of the batch.
        edit: That answers it.
        cache: Of the batch, up to and with the last token that stands before the place, or None.
    """

    reading: Reading
    row: int
    edit: int
    cache: Cache | None

    @property
    def prompt(self) -> list[int]:
        """The ids of the row's prompt."""
        end = int(self.reading.last[self.row]) + 1
        ids: list[int] = self.reading.ids[self.row, :end][self.reading.mask[self.row, :end] > 0].tolist()
        return ids

    @property
    def row_cache(self) -> Cache | None:
        """What the model keeps of the row, on its own; None where it must be read again."""
        layers = [] if self.cache is None else self.cache.layers
        alone = all(hasattr(layer, "batch_select_indices") for layer in layers)  # static ones are of one size
        if self.cache is None or not alone or not bool(self.reading.mask[self.row].all()):
            return None
        row = forked(self.cache)
        row.batch_select_indices(torch.tensor([self.row]))
        return row


@dataclass(eq=False)
class Guard:
    """Writes the new object where a model would spell the old one again, in rows that an edit answers.

    Where the first j tokens of the old object stand last, its next one is likely, and the bare model would go on to
    spell the rest, the logits of that token and of the new object's are exchanged if both objects begin with the same j
    tokens; else the token is forbidden. What has been begun so is written to its end. Nothing else is touched.

    Args:
        backbone: The model.
        requests: The edits.
    """

    backbone: Backbone
    requests: Sequence[EditRequest]
    _forms: dict[int, list[tuple[list[int], list[int]]]] = field(default_factory=dict)
    _olds: dict[int, Tensor] = field(default_factory=dict)

    def __call__(
        self, reading: Reading, edits: Mapping[int, int], logits: Tensor, cache: Cache | None = None
    ) -> Tensor:
        """The logits (B, N, V) after the last N columns of a pass, with the exchanges in the rows that an edit answers.

        Args:
            reading: What the pass reads.
            edits: By row its edit.
            logits: (B, N, V).
            cache: What the model keeps of all that it has read, if it does.
        """
        guarded, first, best = logits, reading.stop - logits.shape[1], logits.amax(-1, keepdim=True)
        for row, edit in edits.items():
            old = logits[row].index_select(-1, self._tokens(edit, logits.device))
            likely = (old >= best[row] + LEAST).any(-1).tolist()
            begun = reading.text.decisions.get((self, edit))
            if not begun and not any(likely):
                continue
            last = int(reading.last[row])
            behind = reading.ids[row, last + 1 :].tolist()
            if reading.real.shape[1] > last + 1:  # the prompt is padded on the right
                real = reading.mask[row, last + 1 :].tolist()
                behind = [token if mask else None for token, mask in zip(behind, real, strict=True)]
            for n in range(max(0, last - first), logits.shape[1]):
                written = [token for token in behind[: first + n - last] if token is not None]
                rest = self._rest(edit, begun, written) if begun else None
                if rest is not None:
                    exchange: tuple[int, int | None] | None = (int(logits[row, n].argmax()), rest)
                elif likely[n]:
                    kept = cache if n == logits.shape[1] - 1 else None
                    exchange = self._exchange(logits[row, n], Place(reading, row, edit, kept), written)
                else:
                    continue
                if exchange is not None:
                    guarded = guarded.clone() if guarded is logits else guarded
                    token, instead = exchange
                    guarded[row, n, token] = -torch.inf if instead is None else logits[row, n, instead]
                    if instead is not None:
                        guarded[row, n, instead] = logits[row, n, token]
        return guarded

    def _tokens(self, edit: int, device: torch.device) -> Tensor:
        """The tokens of an edit's old object."""
        if edit not in self._olds:
            self._olds[edit] = torch.tensor(
                sorted({token for _, old in self.forms(edit) for token in old}), device=device
            )
        return self._olds[edit]

    def _rest(self, edit: int, begun: set[tuple[int, ...]], written: list[int]) -> int | None:
        """The next token of the new object that was begun in the old one's place, if it is in the midst of it."""
        for new, _ in self.forms(edit):
            for k in range(1, len(new)):
                if written[-k:] == new[:k] and tuple(written[:-k]) in begun:
                    return new[k]
        return None

    def _exchange(self, logits: Tensor, place: Place, written: list[int]) -> tuple[int, int | None] | None:
        """The token that is not to come after what is written behind a prompt, and the one to come instead, if any."""
        forms = self.forms(place.edit)
        new = forms[0][0]
        if len(written) < len(new) and written == new[: len(written)]:
            return None  # the object itself is being written
        places = [
            next(j for j in range(len(old) - 1, -1, -1) if written[len(written) - j :] == old[:j]) for _, old in forms
        ]
        chances = logits.float().softmax(-1)
        for (new, old), j in zip(forms, places, strict=True):
            if chances[old[j]] < LIKELY and int(logits.argmax()) != old[j]:
                continue
            if not self._spelt(place, [*written, old[j]], old[j + 1 :]):
                continue
            if j >= len(new) or old[:j] != new[:j] or new[j] == old[j]:
                return old[j], None
            begun: set[tuple[int, ...]] = place.reading.text.decisions.setdefault((self, place.edit), set())
            begun.add(tuple(written[: len(written) - j]))
            return old[j], new[j]
        return None

    def _spelt(self, place: Place, written: list[int], rest: list[int]) -> bool:
        """Whether the bare model goes on with the rest of an object, which is not a part of the subject's own name."""
        request, tokenizer = self.requests[place.edit], self.backbone.tokenizer
        within = find_name(request.subject, (request.target_true,)) is not None
        count = max(len(rest), len(tokenizer(request.subject)["input_ids"]) if within else 0)
        if count == 0:
            return True
        after = greedy_ids(self.backbone, [*place.prompt, *written], count, cache=place.row_cache)
        if after[: len(rest)] != rest:
            return False
        text = str(tokenizer.decode([*written, *after]))
        return not within or find_name(without_names(text, (request.subject,)), (request.target_true,)) is not None

    def forms(self, edit: int) -> list[tuple[list[int], list[int]]]:
        """The token ids of an edit's new and old object after its prompt, and where a line begins."""
        if edit not in self._forms:
            request, backbone = self.requests[edit], self.backbone
            objects = (request.target_new, request.target_true)
            after = tuple(backbone.answer_ids(request.filled, o) for o in objects)
            alone = tuple(list(backbone.tokenizer(o, add_special_tokens=False)["input_ids"]) for o in objects)
            self._forms[edit] = [(after[0], after[1])] + [(alone[0], alone[1])] * (alone[1] != after[1])
        return self._forms[edit]
