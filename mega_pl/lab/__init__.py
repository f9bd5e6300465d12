"""The embedded default: a world of true facts and two small models that know it."""

from importlib.resources import files
from pathlib import Path

MODELS = {"lab-gpt2": "gpt2", "lab-llama": "llama"}


def model_path(name: str) -> str:
    """The folder of a lab model; any other name stays as it is."""
    return str(Path(str(files("mega_pl.lab"))) / "models" / MODELS[name]) if name in MODELS else name
