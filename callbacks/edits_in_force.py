"""Edits in another project's module, while its Trainer validates, tests or predicts."""

from contextlib import ExitStack
from operator import attrgetter
from pathlib import Path

import lightning as L

from ..backbone import load
from ..edits import EditBank, RoutedEdits
from ..errors import MegaValueError


class EditsInForce(L.Callback):
    """Put a bank on a causal language model that another LightningModule holds, and take it off afterwards.

    The model is edited while the Trainer validates, tests or predicts, and is trained bare. `use` says which edit each
    prompt of the last batch got.

    Args:
        bank: A bank, or where `EditBank.from_pretrained` finds one.
        model: Where the module has its model, such as ``model`` or ``generator.decoder``.
        tokenizer: Where it has its tokenizer.
        strict: Whether the model's weights must be those that the bank was fitted on.
    """

    def __init__(
        self, bank: EditBank | str | Path, *, model: str = "model", tokenizer: str = "tokenizer", strict: bool = True
    ) -> None:
        self.bank = bank if isinstance(bank, EditBank) else EditBank.from_pretrained(bank)
        self.model, self.tokenizer, self.strict = model, tokenizer, strict
        self.use: RoutedEdits | None = None
        self._applied = ExitStack()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the bank on."""
        parts = []
        for name in (self.model, self.tokenizer):
            try:
                parts.append(attrgetter(name)(pl_module))
            except AttributeError:
                raise MegaValueError(
                    f"`EditsInForce` must be told where the module has its model and tokenizer, but "
                    f"{type(pl_module).__name__} has no {name!r}; give `model` and `tokenizer`."
                ) from None
        self.use = self._applied.enter_context(self.bank.apply(load(*parts), strict=self.strict))

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take it off."""
        self._applied.close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Take it off."""
        self._applied.close()

    on_test_start = on_predict_start = on_validation_start
    on_test_end = on_predict_end = on_validation_end
