"""Weights that are changed for a while: the linear module through which an MLP writes, and how to give it back."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from mega_pl.backbone import Backbone, Call, Site, blocks, visited
from mega_pl.errors import MegaNumericError, MegaValueError


@contextmanager
def restored(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Give some parameters their values back, to the bit, at the end of a ``with`` block and after an exception."""
    kept = [(parameter, parameter.detach().clone()) for parameter in parameters]
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in kept:
                parameter.copy_(value)


@torch.no_grad()
def assign(parameter: nn.Parameter, value: Tensor) -> None:
    """Give a parameter a value, rounded to its dtype.

    Raises:
        FloatingPointError: If a number is then not finite.
    """
    rounded = value.to(parameter.dtype)
    if not rounded.isfinite().all():
        raise MegaNumericError(
            "an edit must leave the weights finite, but some are not; use a smaller learning rate or a wider dtype."
        )
    parameter.copy_(rounded)


@dataclass
class Seen:
    """What passed through a projection at some tokens; each forward pass fills it anew.

    Args:
        keys: Inputs (N, F).
        values: Outputs (N, D).
    """

    keys: Tensor
    values: Tensor


@dataclass(frozen=True)
class Projection:
    """The linear module that turns an MLP's neurons k (F,) into what it writes, y = W k + b with W (D, F).

    Args:
        module: ``nn.Linear``, which stores W, or GPT-2's ``Conv1D``, which stores its transpose.
    """

    module: nn.Module

    @classmethod
    def of(cls, backbone: Backbone, layer: int) -> "Projection":
        """The projection of a 0-based block.

        Raises:
            ValueError: If there is no such block or projection, or its weights are no plain numbers in memory.
        """
        backbone.check_sites([Site(layer, "mlp_out")])
        projection = cls(blocks(backbone.model)[layer].get_submodule(backbone.layout.path("mlp_proj")))
        weight = projection.weight
        if not weight.is_floating_point() or weight.is_meta:
            kind = "meta" if weight.is_meta else str(weight.dtype).removeprefix("torch.")
            raise MegaValueError(
                f"a method that edits weights must be given floating-point weights in memory, but block {layer} has "
                f"{kind} ones; load the backbone without quantisation or offloading."
            )
        return projection

    @property
    def weight(self) -> nn.Parameter:
        """The weight as the module stores it."""
        return self.module.get_parameter("weight")

    @property
    def transposed(self) -> bool:
        """Whether the weight is stored as (F, D)."""
        return isinstance(self.module, Conv1D)

    @property
    def width(self) -> int:
        """Number F of neurons."""
        return self.weight.shape[0 if self.transposed else 1]

    @property
    def outputs(self) -> int:
        """Width D of what it writes."""
        return self.weight.shape[1 if self.transposed else 0]

    def add(self, delta: Tensor) -> None:
        """Add (D, F) to W, in float32 at least; the sum is rounded once to the weight's dtype.

        Raises:
            FloatingPointError: If the sum is not finite.
        """
        wide = self.weight.detach().to(torch.promote_types(self.weight.dtype, torch.float32))
        assign(self.weight, wide + (delta.T if self.transposed else delta).to(wide))

    @contextmanager
    def record(self, tokens: Tensor | tuple[Tensor, ...]) -> Iterator[Seen]:
        """Record inputs and outputs.

        Args:
            tokens: An index of the batch's tokens: a mask (B, T), or a pair of rows (N,) and positions (N,).
        """
        seen = Seen(keys=torch.empty(0), values=torch.empty(0))

        def read(call: Call) -> None:
            seen.keys = call.entering.detach()[tokens]
            seen.values = call.leaving.detach()[tokens]

        with visited(self.module, read):
            yield seen

    def shifted(self, delta: Tensor, positions: Tensor) -> AbstractContextManager[None]:
        """Add ``delta`` (D,) to the output at one position (B,) of each row, in a way that gradients pass."""

        def shift(call: Call) -> Tensor:
            output = call.leaving
            rows, at = torch.arange(len(output), device=output.device), positions.to(output.device)
            moved = output[rows, at] + delta.to(output)
            return output.index_put((rows, at), moved)

        return visited(self.module, shift)

    def replaced(self, rows: Tensor, columns: Tensor, values: Tensor) -> AbstractContextManager[None]:
        """Put values (N, D) in the place of the outputs at some tokens, in a way that gradients pass.

        Args:
            rows: (N,) long, the tokens' rows.
            columns: (N,) long, their columns among those that the pass reads.
            values: In any floating dtype.
        """

        def replace(call: Call) -> Tensor:
            output = call.leaving
            return output.index_put((rows.to(output.device), columns.to(output.device)), values.to(output))

        return visited(self.module, replace)
