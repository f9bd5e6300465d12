"""Loading a model with its tokenizer, from wherever it is: the lab, the hub, a folder, a GGUF file, or the caller."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from mega_pl.backbone.backbone import Backbone, Dtype
from mega_pl.backbone.layout import layout_of_config
from mega_pl.errors import MegaValueError

LAB_MODELS = {"lab-gpt2": "gpt2", "lab-llama": "llama"}
"""The folders of the lab's models by their names."""

_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")
_HUB_CACHE = re.compile(r"models--(.+)")


def load(
    model: str | Path | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    revision: str | None = None,
    dtype: Dtype = "float32",
    device_map: str | None = None,
    attn_implementation: str | None = None,
) -> Backbone:
    """Load a model with its tokenizer, or take those of the caller.

    What is loaded here is frozen. A caller's own model is left as it is, and so is the tokenizer.

    Args:
        model: ``lab-gpt2``, ``lab-llama``, a name on the Hugging Face hub, a folder, a GGUF file (a path that ends in
            ``.gguf``), or a model in evaluation mode.
        tokenizer: the tokenizer of a model of the caller's own; else None.
        revision: branch, tag or commit on the hub.
        dtype: dtype of the weights; "auto" keeps the checkpoint's.
        device_map: where Accelerate puts the weights, for example "auto"; None keeps them on the CPU.
        attn_implementation: for example "sdpa" or "eager"; None lets the architecture choose.

    Raises:
        ValueError: if the dtype, the name or the architecture is unknown, loading fails, or a model of the caller's
            own has no tokenizer, is wrapped in adapters or is in training mode.
    """
    if not isinstance(model, str | Path):
        if (revision, dtype, device_map, attn_implementation) != (None, "float32", None, None):
            raise MegaValueError(
                "a model of your own must come without options of loading, but got some; set them on it."
            )
        return _own(model, tokenizer)
    if tokenizer is not None:
        raise MegaValueError(f"`tokenizer` must come with a model of your own, but got the name {str(model)!r}.")
    source = _Source.of(str(model), revision)
    with _refusing(str(model), dtype):
        layout_of_config(source.config())
        own_tokenizer = source.tokenizer()
        loaded = AutoModelForCausalLM.from_pretrained(
            source.place,
            dtype=dtype,
            device_map=device_map,
            attn_implementation=attn_implementation,
            **source.options,
        )
    if source.file is not None:
        _forget_quantisation(loaded)
    return Backbone(loaded.eval().requires_grad_(False), own_tokenizer, name=source.name(), revision=revision)


def load_outline(model: str | Path, *, revision: str | None = None, dtype: Dtype = "float32") -> Backbone:
    """Load the config and the tokenizer only; the model stands on the meta device, which has shapes and no weights.

    Arguments and refusals are those of `load`.
    """
    source = _Source.of(str(model), revision)
    with _refusing(str(model), dtype):
        config = source.config()
        layout_of_config(config)
        kept = config.dtype or torch.float32 if dtype == "auto" else getattr(torch, dtype)
        with torch.device("meta"):
            outlined = AutoModelForCausalLM.from_config(config, dtype=kept)
        tokenizer = source.tokenizer()
    return Backbone(outlined.eval().requires_grad_(False), tokenizer, name=source.name(), revision=revision)


def model_name(model: str | Path) -> str:
    """Return the name that `load` gives to what it loads.

    Args:
        model: as in `load`.

    Raises:
        ValueError: if it is a folder without a config.
    """
    with _refusing(str(model), "auto"):
        return _Source.of(str(model), None).name()


def lab_folder(name: str) -> Path:
    """The folder of a lab model.

    Args:
        name: one of `LAB_MODELS`.
    """
    return Path(str(files("mega_pl"))) / "lab" / "models" / LAB_MODELS[name]


@dataclass(frozen=True)
class _Source:
    """Where the files of a model are.

    Args:
        given: what the caller named.
        place: a folder, or a name on the hub.
        file: name of the GGUF file there, or None.
        revision: branch, tag or commit on the hub.
    """

    given: str
    place: str
    file: str | None
    revision: str | None

    @classmethod
    def of(cls, given: str, revision: str | None) -> _Source:
        if given in LAB_MODELS:
            return cls(given, str(lab_folder(given)), None, revision)
        if not given.endswith(".gguf"):
            return cls(given, given, None, revision)
        missing = [name for name in ("gguf", "accelerate") if find_spec(name) is None]
        if missing:
            raise MegaValueError(
                "a GGUF file must be read with the packages gguf and accelerate, but there is no "
                f"{' and no '.join(missing)}; run `pip install {' '.join(missing)}`."
            )
        path = Path(given)
        return cls(given, str(path.parent), path.name, revision)

    @property
    def options(self) -> dict[str, str | None]:
        """What to pass to the library beside the place."""
        return {"revision": self.revision} | ({} if self.file is None else {"gguf_file": self.file})

    def config(self) -> PreTrainedConfig:
        config: PreTrainedConfig = AutoConfig.from_pretrained(self.place, **self.options)
        return config

    def tokenizer(self) -> PreTrainedTokenizerBase:
        return AutoTokenizer.from_pretrained(self.place, **self.options)

    def name(self) -> str:
        """What others can know the model by: no path of this machine."""
        if self.given in LAB_MODELS or not Path(self.place).is_dir():
            return self.given
        if self.file is not None:
            return self.file
        fields, _ = PreTrainedConfig.get_config_dict(self.place)
        return _portable(str(fields.get("_name_or_path", "")), self.place)


def _own(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> Backbone:
    """A backbone of the caller's own model and tokenizer, which keep their state."""
    if hasattr(model, "get_base_model"):
        raise MegaValueError(
            f"`model` must be a model without adapters, but got {type(model).__name__}; pass "
            "`model.merge_and_unload()`, or `model.get_base_model()` to leave them out."
        )
    if not isinstance(model, PreTrainedModel):
        raise MegaValueError(
            f"`model` must be a name, a path or a model of transformers, but got {type(model).__name__}."
        )
    if tokenizer is None:
        raise MegaValueError(
            "`tokenizer` must come with a model of your own, but got none; call `load(model, tokenizer)`."
        )
    origin = str(model.config._name_or_path or "")
    return Backbone(model, tokenizer, name=_portable(origin, origin))


def _portable(name: str, place: str) -> str:
    """A hub name where there is one, else the last part of a path."""
    if _HUB_NAME.fullmatch(name) and not Path(name).exists():
        return name
    path = Path(place)
    cached = [match[1].replace("--", "/") for part in path.parts if (match := _HUB_CACHE.fullmatch(part))]
    return cached[-1] if cached else path.absolute().name if place else ""


def _forget_quantisation(model: PreTrainedModel) -> None:
    """Take off what marks a model as quantised, which its weights no longer are, so that it can be saved."""
    for name in ("hf_quantizer", "is_quantized", "quantization_method"):
        vars(model).pop(name, None)
    vars(model.config).pop("quantization_config", None)


@contextmanager
def _refusing(given: str, dtype: str) -> Iterator[None]:
    """Make one line of whatever keeps a model from loading."""
    if dtype not in get_args(Dtype):
        raise MegaValueError(f"`dtype` must be one of {', '.join(get_args(Dtype))}, but got {dtype!r}.")
    try:
        yield
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise MegaValueError(
            f"`model` must be a lab model, a hub name, a folder or a GGUF file that loads with these options, but got "
            f"{given!r}: {reason}"
        ) from error
