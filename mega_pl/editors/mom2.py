"""What else a projection reads: the second moment of its inputs over text, which edits of its weight should spare."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from mega_pl.asking import batches, position_limit
from mega_pl.backbone import Backbone, Site, until
from mega_pl.editors.texts import TextConfig, read_texts
from mega_pl.editors.weights import Projection
from mega_pl.edits.tensor_files import read_tensor_file, write_tensor_file
from mega_pl.errors import MegaValueError
from mega_pl.functional.moments import SecondMoment

UNLIMITED = 1 << 20
"""Stands for the longest text of a model that does not say what it reads."""

MOMENT = "second moments"
"""What a file holds, for a message."""


@dataclass(frozen=True, kw_only=True)
class Mom2Config:
    """Second moments of a projection's inputs.

    Args:
        text: Over which text.
        ridge: Added to the diagonal, in multiples of its mean: 1e-3, and 1e-2 under ten tokens for each input.
        folder: Where moments are kept; None for ``$MEGA_PL_CACHE/moments``, by default under ``~/.cache/mega_pl``.
    """

    text: TextConfig = field(default_factory=TextConfig)
    ridge: float = 1e-3
    folder: str | None = None

    def __post_init__(self) -> None:
        if not self.ridge >= 0:
            raise MegaValueError(f"`ridge` must be at least 0, but got {self.ridge}.")

    @property
    def place(self) -> Path:
        """The folder."""
        if self.folder is not None:
            return Path(self.folder)
        return Path(os.environ.get("MEGA_PL_CACHE", "~/.cache/mega_pl")).expanduser() / "moments"


@dataclass(frozen=True, eq=False)
class FactoredMoment:
    """Second moment of a projection's inputs with a ridge, ``C = E[k k^T] + ridge * tr(E[k k^T]) / F * I``, factored.

    Args:
        factor: (F, F) float64, lower triangular, ``C = factor factor^T``.
        tokens: How many inputs it is of.
        ridge: See above.
    """

    factor: Tensor
    tokens: int
    ridge: float

    @classmethod
    def of(cls, moment: Tensor, tokens: int, ridge: float) -> "FactoredMoment":
        """Factor a moment (F, F) of any floating dtype, in float64.

        Raises:
            ValueError: If it is not positive definite.
        """
        wide = moment.double()
        lifted = wide + ridge * wide.diagonal().mean() * torch.eye(len(wide), dtype=wide.dtype, device=wide.device)
        factor, failed = torch.linalg.cholesky_ex(lifted)
        if int(failed):
            raise MegaValueError(
                f"a second moment must be positive definite, but with `ridge` {ridge} that of {tokens} inputs of width "
                f"{len(wide)} is not; take more documents or a larger ridge."
            )
        return cls(factor, tokens, ridge)

    def solve(self, keys: Tensor) -> Tensor:
        """``C^{-1} K`` for keys K (F, E), in float64."""
        return torch.cholesky_solve(keys.to(self.factor), self.factor)


def factored_moments(backbone: Backbone, layers: Sequence[int], config: Mom2Config) -> dict[int, FactoredMoment]:
    """The factored moments of some blocks' projections, on the model's device."""
    return {
        layer: FactoredMoment.of(moment.to(backbone.device), tokens, config.ridge)
        for layer, (moment, tokens) in second_moments(backbone, layers, config).items()
    }


def second_moments(
    backbone: Backbone,
    layers: Sequence[int],
    config: Mom2Config,
    texts: Iterable[str] | None = None,
    *,
    save_every: int = 512,
) -> dict[int, tuple[Tensor, int]]:
    """Second moments of the inputs of some blocks' projections over every token of some text.

    What the folder holds is read from it. The rest is computed in one pass; one that was broken off goes on after the
    last saved document and ends in the same moments, to the bit.

    Args:
        backbone: The bare model.
        layers: 0-based blocks.
        config: Which text, and where moments are kept.
        texts: The documents, instead of those that ``config.text.source`` leads to; it then only names them.
        save_every: Documents after which the state is saved.

    Returns:
        For each block the moment (F, F) in float32 on the CPU, and the number of tokens.

    Raises:
        ValueError: If there is no such block, source or column, or the text has no token.
    """
    files = {layer: _file(backbone, [layer], config) for layer in layers}
    missing = [layer for layer in layers if not files[layer].exists()]
    if missing:
        for layer, moment in _accumulate(backbone, missing, config, texts, save_every).items():
            tensors = {"second_moment": moment.compute().float().cpu()}
            write_tensor_file(
                files[layer], tensors, {"tokens": moment.count, "layer": layer, "text": asdict(config.text)}
            )
    found = {layer: read_tensor_file(path, MOMENT) for layer, path in files.items()}
    return {layer: (tensors["second_moment"], facts["tokens"]) for layer, (tensors, facts) in found.items()}


def _accumulate(
    backbone: Backbone, layers: Sequence[int], config: Mom2Config, texts: Iterable[str] | None, save_every: int
) -> dict[int, SecondMoment]:
    projections = {layer: Projection.of(backbone, layer) for layer in sorted(layers)}
    moments = {layer: SecondMoment(p.width, backbone.device) for layer, p in projections.items()}
    partial = _file(backbone, layers, config).with_suffix(".partial")
    done, total = _resume(partial, moments), config.text.documents
    rest = read_texts(backbone, config.text, done) if texts is None else islice(texts, done, total)
    with tqdm(initial=done, total=total, desc="keys", unit="document", dynamic_ncols=True) as progress:
        while documents := list(islice(rest, save_every)):
            for ids in _batches(backbone, documents, config.text.context):
                _add_keys(backbone, projections, moments, ids)
            done += len(documents)
            progress.update(len(documents))
            sums = {str(layer): moment.sums for layer, moment in moments.items()}
            write_tensor_file(partial, sums, {"documents": done, "tokens": next(iter(moments.values())).count})
    partial.unlink(missing_ok=True)
    return moments


def _batches(
    backbone: Backbone, texts: Sequence[str], context: int | None, tokens_per_batch: int = 8192
) -> Iterator[list[list[int]]]:
    """Ids of texts, cut where they are too long, in batches."""
    limit = min(context or UNLIMITED, position_limit(backbone) or UNLIMITED)
    encoded = backbone.tokenizer(list(texts), truncation=True, max_length=limit)["input_ids"]
    filled = [ids for ids in encoded if ids]
    return ([filled[i] for i in rows] for rows in batches([len(ids) for ids in filled], tokens_per_batch))


@torch.no_grad()
def _add_keys(
    backbone: Backbone,
    projections: dict[int, Projection],
    moments: dict[int, SecondMoment],
    texts: Sequence[Sequence[int]],
) -> None:
    """Add the inputs at every token; the model runs up to the last of the projections, padded on the right."""
    ids = pad_sequence([torch.tensor(text) for text in texts], batch_first=True).to(backbone.device)
    mask = pad_sequence([torch.ones(len(text), dtype=torch.long) for text in texts], batch_first=True).to(ids)

    with ExitStack() as armed:
        seen = {layer: armed.enter_context(p.record(mask.bool())) for layer, p in projections.items()}
        armed.enter_context(until(backbone.model, Site(max(projections), "resid_post")))
        backbone.model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
    for layer, moment in moments.items():
        moment.update(seen[layer].keys)


def _file(backbone: Backbone, layers: Sequence[int], config: Mom2Config) -> Path:
    """A file whose name differs wherever the moments may."""
    said = json.dumps([backbone.fingerprint, str(backbone.dtype), asdict(config.text)])
    digest = hashlib.sha256(said.encode()).hexdigest()[:16]
    return config.place / f"{digest}-{'-'.join(map(str, sorted(layers)))}.safetensors"


def _resume(path: Path, moments: dict[int, SecondMoment]) -> int:
    """Load the state of a pass that was broken off; give the number of documents that it is of."""
    if not path.exists():
        return 0
    sums, facts = read_tensor_file(path, MOMENT)
    for layer, moment in moments.items():
        moment.sums.copy_(sums[str(layer)])
        moment.count = facts["tokens"]
    return int(facts["documents"])
