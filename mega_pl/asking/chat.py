"""Putting texts into a model's own chat template."""

from collections.abc import Sequence

from mega_pl.backbone import Backbone


def chat_prompt(backbone: Backbone, turns: Sequence[str]) -> str:
    """A chat in the model's own template, up to where the assistant writes.

    Args:
        backbone: Its tokenizer has a chat template.
        turns: What user and assistant said in turn; the user was last.
    """
    chat = [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]
    text = str(backbone.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))
    return text.removeprefix(backbone.tokenizer.bos_token) if backbone.prepends_bos else text  # it is put there again
