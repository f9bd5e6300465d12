"""Beginnings of texts, read once and kept: what follows is read behind them, and what several share is read once."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from mega_pl.asking.batches import TOKENS, batches
from mega_pl.backbone import Backbone, Site, record, until


class Beginnings:
    """N texts as far as they have been read.

    Args:
        cache: Their keys and values, by block those of single tokens, put together where a pass asks for them.
        mask: (N, T) long, 1 at real tokens.
    """

    def __init__(self, cache: DynamicCache, mask: Tensor) -> None:
        self.cache, self.mask = cache, mask

    def follow(self, ids: Tensor) -> dict[str, Any]:
        """Arguments of a forward pass that reads on; what it reads belongs to the texts from then on.

        Args:
            ids: (N, S) long, the next tokens of each text.
        """
        position = self.mask.sum(1, keepdim=True) + torch.arange(ids.shape[1], device=ids.device)
        self.mask = torch.cat([self.mask, torch.ones_like(ids)], 1)
        return {
            "input_ids": ids,
            "attention_mask": self.mask,
            "position_ids": position,
            "past_key_values": self.cache,
            "use_cache": True,
        }

    def select(self, rows: Sequence[int]) -> None:
        """Go on with some of the texts alone."""
        index = torch.tensor(rows, device=self.mask.device)
        self.mask = self.mask[index]
        self.cache.batch_select_indices(index)


@torch.no_grad()
def read_beginnings(
    backbone: Backbone, rows: Sequence[Sequence[int]], *, last: Site | None = None, tokens_per_batch: int = TOKENS
) -> Beginnings:
    """Read the beginnings of texts, of those that begin alike the common part once.

    Args:
        backbone: The bare model.
        rows: For each of N texts its ids, any number of them.
        last: The last site that is of interest; blocks above it are not run.
        tokens_per_batch: The most tokens of a batch, padding included.
    """
    pool = _Pool(backbone, last, tokens_per_batch)
    return pool.gathered(pool.read_all(rows))


@torch.no_grad()
def read_states(
    backbone: Backbone, rows: Sequence[Sequence[int]], site: Site, *, tokens_per_batch: int = TOKENS
) -> tuple[Tensor, list[tuple[int, ...]]]:
    """Read texts up to a site, of those that begin alike the common part once.

    Args:
        backbone: The bare model.
        rows: For each of N texts its ids, one or more.
        site: Where states are recorded; blocks above it are not run.
        tokens_per_batch: The most tokens of a batch, padding included.

    Returns:
        The states (P, D) of the tokens that were read, float32 on the CPU, and for each text the places of its tokens
        among them.
    """
    pool = _Pool(backbone, site, tokens_per_batch, recorded=[site])
    places = pool.read_all(rows)
    return torch.cat(pool.states), places


def _common_parts(texts: Sequence[tuple[int, ...]]) -> list[int]:
    """How many ids each text shares with the one before or after it, in their order."""
    order = sorted(range(len(texts)), key=texts.__getitem__)
    common = [0] * len(texts)
    for one, other in itertools.pairwise(order):
        pairs = zip(texts[one], texts[other], strict=False)
        count = next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(texts[one]), len(texts[other])))
        common[one], common[other] = max(common[one], count), max(common[other], count)
    return common


class _Gathered(DynamicLayer):
    """Keys and values of a block behind those of single tokens, which are put together for the time of a pass.

    So a batch of texts that share much, or differ in length, takes what its tokens take, and not what its padding does.

    Args:
        keys: (P, heads, width) of P tokens.
        values: Of the same.
        index: (N, T) long, the tokens of each text.
    """

    def __init__(self, keys: Tensor, values: Tensor, index: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.pool, self.index = (keys, values), index.to(keys.device)
        self.lazy_initialization(keys, values)

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        *args: object,
        **kwargs: object,
    ) -> tuple[Tensor, Tensor]:
        """Keep what a pass has read, and give all."""
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        before = (tensor[self.index].transpose(1, 2) for tensor in self.pool)
        return torch.cat([next(before), keys], 2), torch.cat([next(before), values], 2)

    def get_seq_length(self) -> int:
        """How many tokens there are."""
        return self.index.shape[1] + int(super().get_seq_length())

    def batch_select_indices(self, indices: Tensor) -> None:
        """Go on with some of the texts alone."""
        self.index = self.index[indices.to(self.index.device)]
        if self.keys is not None and self.values is not None and self.keys.numel():
            self.keys, self.values = self.keys[indices], self.values[indices]


class _Pool:
    """Keys and values of single tokens, by block, each read behind others of the pool, and their states at a site."""

    def __init__(
        self, backbone: Backbone, last: Site | None, tokens_per_batch: int, recorded: Sequence[Site] = ()
    ) -> None:
        self.backbone, self.last, self.tokens_per_batch, self.recorded = backbone, last, tokens_per_batch, recorded
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}
        self.states: list[Tensor] = []
        self.size = 0

    def read_all(self, rows: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
        """Read texts, each once; gives the places of their tokens.

        Each is a common part, the longest that it shares with a neighbour in their order, and a rest. Common parts are
        read first, rests behind copies of their keys and values.
        """
        texts = list(dict.fromkeys(map(tuple, rows)))
        common = _common_parts(texts)
        parts = list(dict.fromkeys(text[:count] for text, count in zip(texts, common, strict=True)))
        places = dict(zip(parts, self.read([()] * len(parts), parts), strict=True))
        before = [places[text[:count]] for text, count in zip(texts, common, strict=True)]
        whole = self.read(before, [text[count:] for text, count in zip(texts, common, strict=True)])
        place = dict(zip(texts, whole, strict=True))
        return [place[tuple(row)] for row in rows]

    def read(self, before: Sequence[tuple[int, ...]], texts: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
        """Read texts, each behind the tokens at some places; gives the places of both.

        Padding is on the right, so that nothing stands between a text and what it follows.
        """
        places, lengths = list(before), [len(text) for text in texts]
        for group in batches(lengths, self.tokens_per_batch):
            rows = [i for i in group if texts[i]]
            if not rows:
                continue
            known = self.gathered([before[i] for i in rows])
            encoded = self.backbone.pad([texts[i] for i in rows], "right")
            inputs = known.follow(encoded.input_ids)
            inputs["attention_mask"][:, -encoded.input_ids.shape[1] :] = encoded.attention_mask
            with record(self.backbone.model, self.recorded) as seen, self._stop():
                self.backbone.model.base_model(**inputs)
            real = encoded.attention_mask.bool()
            self._keep(known.cache, real)
            self.states += [values[real.to(values.device)].float().cpu() for values in seen.values()]
            for i in rows:
                places[i] = (*before[i], *range(self.size, self.size + len(texts[i])))
                self.size += len(texts[i])
        return places

    def gathered(self, places: Sequence[tuple[int, ...]]) -> Beginnings:
        """The tokens at some places as texts."""
        device, width = self.backbone.device, max(map(len, places), default=0)
        padded = [[0] * (width - len(row)) + list(row) for row in places]
        mask = [[0] * (width - len(row)) + [1] * len(row) for row in places]
        index, cache = torch.tensor(padded, dtype=torch.long), DynamicCache()
        if width:
            count = max(self.layers) + 1
            cache.layers = [
                _Gathered(*self.layers[n], index) if n in self.layers else DynamicLayer() for n in range(count)
            ]
        return Beginnings(cache, torch.tensor(mask, dtype=torch.long, device=device).view(len(places), width))

    def _keep(self, cache: DynamicCache, real: Tensor) -> None:
        """Add the tokens that a pass has read, row by row."""
        for n, layer in enumerate(cache.layers):
            assert isinstance(layer, DynamicLayer)
            if layer.keys is None or layer.values is None or not layer.keys.numel():
                continue  # above the last site, or another layer's are used
            new = [values.transpose(1, 2)[real.to(values.device)] for values in (layer.keys, layer.values)]
            old = self.layers.get(n, (new[0][:0], new[1][:0]))
            self.layers[n] = torch.cat([old[0], new[0]]), torch.cat([old[1], new[1]])

    def _stop(self) -> AbstractContextManager[None]:
        return nullcontext() if self.last is None else until(self.backbone.model, self.last)
