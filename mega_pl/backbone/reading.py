"""Following a model as it reads prompts."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

Reading = Callable[[dict[str, Tensor], Tensor], AbstractContextManager[None]]
"""From a forward pass's ids, mask and positions, by name, and each row's last real token (B,), to a context."""


@contextmanager
def each_prompt(model: PreTrainedModel, reading: Reading) -> Iterator[None]:
    """Put a context around each forward pass that reads a prompt, and around none that writes on after one.

    What the context itself asks of the model while it is entered is not read again.

    Args:
        model: The model.
        reading: Makes the context.
    """
    armed, entering = ExitStack(), False

    def enter(_: object, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
        nonlocal entering
        if entering:
            return
        cache = kwargs.get("past_key_values")
        if cache is not None and cache.get_seq_length() > 0:
            return
        inputs = {name: kwargs[name] for name in ("attention_mask", "position_ids") if kwargs.get(name) is not None}
        inputs["input_ids"] = args[0] if args else kwargs["input_ids"]
        mask = inputs.setdefault("attention_mask", torch.ones_like(inputs["input_ids"]))
        last = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(-1)
        entering = True
        try:
            armed.enter_context(reading(inputs, last))
        finally:
            entering = False

    armed_before = model.register_forward_pre_hook(enter, with_kwargs=True)
    closed_after = model.register_forward_hook(lambda *_: armed.close(), always_call=True)
    try:
        yield
    finally:
        armed.close()
        armed_before.remove()
        closed_after.remove()
