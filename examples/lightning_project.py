"""A Lightning project of its own gets edits by one callback.

    python examples/lightning_project.py

The module knows nothing of edits. Without the callback the model says what it has learned; with it, what the bank says.
"""

from tempfile import TemporaryDirectory
from typing import Any

import lightning as L
from torch.utils.data import DataLoader

import mega_pl
from mega_pl.callbacks import EditsInForce

TEXTS = ["Marie Curie was born in", "The place of birth of Marie Curie is", "The capital of France is"]


class Writer(L.LightningModule):
    """Writes on after texts."""

    def __init__(self) -> None:
        super().__init__()
        lab = mega_pl.load("lab-gpt2")  # any causal language model of transformers
        self.model, self.tokenizer = lab.model, lab.tokenizer

    def predict_step(self, batch: list[str], batch_idx: int) -> list[str]:
        """Write on after a batch of texts."""
        inputs = self.tokenizer(batch, return_tensors="pt", padding=True, padding_side="left").to(self.device)
        written: Any = self.model.generate(**inputs, max_new_tokens=3, do_sample=False)
        new = written[:, inputs["input_ids"].shape[1] :]
        return list(self.tokenizer.batch_decode(new, skip_special_tokens=True))


def main() -> dict[str, list[str]]:
    """Predict without and with edits."""
    edit = mega_pl.EditRequest(
        prompt="{} was born in", subject="Marie Curie", target_new="Rome", target_true="Warsaw", relation="P19"
    )
    with TemporaryDirectory() as folder:
        mega_pl.fit(mega_pl.load("lab-gpt2"), [edit]).save_pretrained(folder)
        found = {}
        for name, callbacks in {"bare": [], "edited": [EditsInForce(folder)]}.items():
            trainer = L.Trainer(
                accelerator="cpu",
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                callbacks=list(callbacks),
            )
            batches: Any = trainer.predict(Writer(), DataLoader(TEXTS, batch_size=2))  # type: ignore[arg-type]
            found[name] = [text for batch in batches for text in batch]
    return found


if __name__ == "__main__":
    for kind, texts in main().items():
        for prompt, text in zip(TEXTS, texts, strict=True):
            print(f"{kind:6} | {prompt}{text}")
