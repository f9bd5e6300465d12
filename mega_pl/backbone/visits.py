"""The one hook under everything that reads or changes a model: a function that visits each call of a module."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch._dynamo.config as compiler_config
from torch import Tensor, nn

compiler_config.skip_nnmodule_hook_guards = False
"""By default a compiler passes over hooks that come after it, and over those that it is told to leave as they are."""


@dataclass(frozen=True)
class Call:
    """A call of a module whose first argument and first result are activations (B, T, D).

    Args:
        args: What it is called with, and
        kwargs: by name.
        output: What it returns.
    """

    args: tuple[Tensor, ...]
    kwargs: Mapping[str, Tensor]
    output: Tensor | tuple[Tensor, ...]

    @property
    def entering(self) -> Tensor:
        """The activations that enter."""
        return self.args[0] if self.args else self.kwargs["hidden_states"]

    @property
    def leaving(self) -> Tensor:
        """The activations that leave."""
        return self.output if isinstance(self.output, Tensor) else self.output[0]

    def with_leaving(self, values: Tensor) -> Tensor | tuple[Tensor, ...]:
        """What the module returns where other activations leave."""
        return values if isinstance(self.output, Tensor) else (values, *self.output[1:])


@contextmanager
def visited(module: nn.Module, visit: Callable[[Call], Tensor | None]) -> Iterator[None]:
    """Let a function see each call of a module; activations that it returns leave in the place of the module's own.

    Visits take place in the order in which their blocks were entered, each seeing what the one before has made of it.

    Args:
        module: The module.
        visit: Gets a call; gives what is to leave, or None.
    """

    def hook(
        _: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Tensor | tuple[Tensor, ...]
    ) -> Tensor | tuple[Tensor, ...] | None:
        call = Call(args, kwargs, output)
        replaced = visit(call)
        return None if replaced is None else call.with_leaving(replaced)

    handle = module.register_forward_hook(eager(hook), with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def eager(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Return the hook as a compiler must leave it: run each time, outside of what is compiled."""
    disabled: Callable[..., Any] = torch.compiler.disable(hook)  # type: ignore[no-untyped-call]
    return disabled
