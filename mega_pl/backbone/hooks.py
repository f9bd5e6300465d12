"""Recording and steering the sites of a model, both as context managers that leave no hook behind.

Hooks at one site run in the order in which their contexts were entered: what is recorded inside a `steer` block is the
steered value, and of two nested `steer` blocks the inner one gets what the outer one made. What lies downstream of a
steered site always sees the steered value. Modules are hooked inside the block, so activation checkpointing runs them
again in the backward pass, which must therefore also lie inside the context.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mega_pl.backbone.layout import blocks, check_sites, layout_of
from mega_pl.backbone.sites import Site
from mega_pl.backbone.visits import Call, visited
from mega_pl.errors import MegaNumericError, MegaRuntimeError, MegaValueError

Steering = Callable[[Tensor], Tensor]
"""Maps activations (R, D) to activations (R, D)."""

_Visit = Callable[[Tensor, Tensor | None], Tensor | None]
"""Gets what a module hands on and, at `resid_mid`, the stream it is added to; returns its replacement or None."""


@contextmanager
def record(
    model: PreTrainedModel, sites: Iterable[Site], positions: Tensor | None = None
) -> Iterator[dict[Site, Tensor]]:
    """Record the values of sites; the yielded dictionary is filled by each forward pass, the last one standing.

    Args:
        model: a model of a known architecture.
        sites: the sites to read.
        positions: (B,) long, the index of the token to read in each row, or None for every token.

    Yields:
        For each site the detached values in the model's dtype, (B, D) or, with every token, (B, T, D).

    Raises:
        ValueError: if the model has no such site, or the positions do not fit the batch.
    """
    sites = list(sites)
    check_sites(model, sites)
    where = _Where.checked(positions, None)
    seen: dict[Site, Tensor] = {}

    layout = layout_of(model)

    def reader(site: Site) -> _Visit:
        def read(output: Tensor, before: Tensor | None) -> None:
            added = _scaled(output, layout.scale(site))
            value = added if before is None else before + added
            seen[site] = value.detach()[where.index(value)]

        return read

    with ExitStack() as armed:
        for site in sites:
            _attach(armed, model, site, reader(site))
        yield seen


@contextmanager
def steer(
    model: PreTrainedModel,
    edits: Mapping[Site, Steering],
    positions: Tensor | None = None,
    rows: Tensor | None = None,
) -> Iterator[None]:
    """Replace the values h of sites by f(h), out of place, in some rows of the batch.

    At `resid_mid` h = x + a does not leave any module, so attention's output a is replaced by a + f(h) - h: then both
    the MLP and the stream get f(h), up to rounding. Where a block multiplies outputs before it adds them, h and a are
    the products. Everything not named by `rows` and `positions` stays bit-identical; only in a mixture of experts the
    last bits of other rows hang on which tokens share an expert.

    Args:
        model: a model of a known architecture.
        edits: for each site a function from (R, D) to (R, D) in the model's dtype; row i belongs to `rows[i]`. With
            every token it gets (R * T, D), the tokens of one row next to each other.
        positions: (B,) long, the index of the token to write in each row of the batch, or None for every token.
        rows: (R,) long, the rows of the batch to steer, or None for all. Where R is 0 no hook is attached.

    Raises:
        ValueError: if the model has no such site, positions or rows do not fit the batch, or f changes the shape.
        FloatingPointError: if a steered value is not finite.
    """
    check_sites(model, edits)
    where, layout = _Where.checked(positions, rows), layout_of(model)
    with ExitStack() as armed:
        if rows is None or rows.numel() > 0:
            for site, function in edits.items():
                _attach(armed, model, site, _writer(site, function, where, layout.scale(site)))
        yield


@contextmanager
def steer_tokens(
    model: PreTrainedModel, edits: Mapping[Site, Steering], rows: Tensor, columns: Tensor
) -> Iterator[None]:
    """Replace the values h of sites by f(h) at some tokens in the one forward pass inside the block, as `steer` does.

    Args:
        model: a model of a known architecture.
        edits: for each site a function from (R, D) to (R, D).
        rows: (R,) long, the row of each token in the batch.
        columns: (R,) long, its index among the tokens that the pass reads.

    Raises:
        ValueError: if the model has no such site.
        RuntimeError: if the pass has gone by a site without its hooks.
    """
    check_sites(model, edits)
    layout, places, reached = layout_of(model), _Places(rows, columns), set[Site]()

    def counted(site: Site, write: _Visit) -> _Visit:
        def visit(output: Tensor, before: Tensor | None) -> Tensor | None:
            reached.add(site)
            return write(output, before)

        return visit

    with ExitStack() as armed:
        for site, function in edits.items():
            _attach(armed, model, site, counted(site, _writer(site, function, places, layout.scale(site))))
        yield
    lost = sorted(set(edits) - reached)
    if lost:
        raise MegaRuntimeError(
            f"a steered pass must run the hooks at {lost[0]}, but it did not: the model was compiled before the edits "
            "were put on; compile it afterwards, or call `torch.compiler.reset()`."
        )


class _Reached(Exception):
    """Ends a forward pass that has gone far enough."""


@contextmanager
def until(model: PreTrainedModel, site: Site) -> Iterator[None]:
    """End the one forward pass inside the block at a site: what lies above it is not run, and nothing is returned.

    Args:
        model: a model of a known architecture.
        site: the last site that is reached; contexts that were entered before have done there what they do.

    Raises:
        ValueError: if the model has no such site.
    """
    check_sites(model, [site])

    def stop(_: Tensor, __: Tensor | None) -> None:
        raise _Reached

    with ExitStack() as armed:
        _attach(armed, model, site, stop)
        with suppress(_Reached):
            yield


@dataclass(frozen=True)
class _Places:
    """Single tokens of a batch."""

    rows: Tensor
    columns: Tensor

    def index(self, values: Tensor) -> tuple[Tensor, ...]:
        """Return the index of the tokens in values (B, T, D)."""
        return self.rows.to(values.device), self.columns.to(values.device)


@dataclass(frozen=True)
class _Where:
    """The rows and tokens of a batch that a context reads or writes."""

    positions: Tensor | None
    rows: Tensor | None
    last: int

    @classmethod
    def checked(cls, positions: Tensor | None, rows: Tensor | None) -> _Where:
        for name, index in (("positions", positions), ("rows", rows)):
            if index is not None and (index.dtype != torch.long or index.dim() != 1):
                raise MegaValueError(f"`{name}` must be a long tensor of one dimension, but got {_described(index)}.")
            if index is not None and index.numel() and int(index.min()) < 0:
                raise MegaValueError(f"`{name}` must be 0 or more, but got {int(index.min())}.")
        if rows is not None and len(set(rows.tolist())) != len(rows):
            raise MegaValueError(f"`rows` must not repeat a row, but got {rows.tolist()}.")
        last = int(positions.max()) if positions is not None and positions.numel() else 0
        return cls(positions, rows, last)

    def index(self, values: Tensor) -> tuple[Tensor, ...]:
        """Return the index of the chosen rows and tokens in values (B, T, D)."""
        batch, tokens, device = values.shape[0], values.shape[1], values.device
        rows = torch.arange(batch, device=device) if self.rows is None else self.rows.to(device)
        if self.rows is not None and int(self.rows.max()) >= batch:
            raise MegaValueError(f"`rows` must lie in [0, {batch - 1}] for this batch, but got {int(self.rows.max())}.")
        if self.positions is None:
            return (rows,)
        if len(self.positions) != batch:
            raise MegaValueError(
                f"`positions` must hold one index for each of the {batch} rows of the batch, "
                f"but got {len(self.positions)}."
            )
        if self.last >= tokens:
            raise MegaValueError(
                f"`positions` must lie in [0, {tokens - 1}] for this forward pass, but got {self.last}; "
                "in a cached generation arm the hooks for the prefill only."
            )
        return rows, self.positions.to(device)[rows]


def _writer(site: Site, function: Steering, where: _Where | _Places, scale: float) -> _Visit:
    def write(output: Tensor, before: Tensor | None) -> Tensor:
        index = where.index(output)
        handed = output[index]
        added = _scaled(handed, scale)
        value = added if before is None else before[index] + added
        steered = function(value.flatten(0, -2))
        if steered.shape != value.flatten(0, -2).shape:
            raise MegaValueError(
                f"an edit must keep the shape {tuple(value.flatten(0, -2).shape)} at {site}, "
                f"but returned {tuple(steered.shape)}."
            )
        steered = steered.to(value.device).view_as(value)
        if before is not None or scale != 1:
            # The difference is taken in float32 at least: in half precision it would lose the bits of a small edit.
            wide = torch.promote_types(value.dtype, torch.float32)
            steered = handed.to(wide) + (steered.to(wide) - value.to(wide)) / scale
        steered = steered.to(output.dtype)
        _check_finite(steered, site, index[0])
        return output.index_put(index, steered)

    return write


def _scaled(values: Tensor, scale: float) -> Tensor:
    return values if scale == 1 else values * scale


def _check_finite(steered: Tensor, site: Site, rows: Tensor) -> None:
    finite = steered.isfinite().flatten(1).all(1)
    if not finite.all():
        raise MegaNumericError(
            f"steering {site} must give finite values, but rows {rows[~finite].tolist()} of the batch are not; "
            "use a smaller strength or a wider dtype."
        )


def _attach(armed: ExitStack, model: PreTrainedModel, site: Site, visit: _Visit) -> None:
    """Let a function visit what a site's module hands on, until the stack is closed."""
    layout, block = layout_of(model), blocks(model)[site.layer]
    entered: list[Tensor] = []

    def enter(call: Call) -> None:
        entered[:] = [call.entering]

    def leave(call: Call) -> Tensor | None:
        return visit(call.leaving, entered.pop() if entered else None)

    if site.kind == "resid_mid":
        armed.enter_context(visited(block.get_submodule(layout.entry), enter))
    armed.enter_context(visited(layout.source(block, site), leave))


def _described(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"
