"""The settings that are shipped for real models are those of the published code; those of the lab work on the lab."""

from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from jsonargparse import auto_cli

from mega_pl import load
from mega_pl.editors import Editor, Ike, Sake
from mega_pl.lab.data import LabDataModule

CONFIGS = Path(__file__).parents[2] / "configs"
PUBLISHED: dict[str, dict[str, dict[str, Any]]] = {
    "gpt2-xl": {
        "ROME": {
            "layer": 17,
            "value.v_num_grad_steps": 20,
            "value.v_weight_decay": 0.5,
            "value.clamp_norm_factor": 4.0,
            "mom2": None,
        },
        "MEMIT": {
            "layers": (13, 14, 15, 16, 17),
            "value.v_num_grad_steps": 20,
            "value.clamp_norm_factor": 0.75,
            "mom2_update_weight": 20_000.0,
        },
        "FT-L": {"layers": (0,), "num_steps": 25, "lr": 5e-4, "norm_constraint": 5e-4, "batch_size": 3},
        "AlphaEdit": {
            "layers": (13, 14, 15, 16, 17),
            "value.clamp_norm_factor": 0.75,
            "value.v_weight_decay": 0.5,
            "nullspace_threshold": 2e-2,
            "L2": 10.0,
        },
        "GRACE": {"layer": 35, "eps": 1.0, "n_iter": 200, "edit_lr": 1.0},
        "IKE": {"demonstrations": 16},
        "SAKE": {"regularization": 1e-2},
    },
    "llama2-7b": {
        "ROME": {
            "layer": 5,
            "value.v_num_grad_steps": 25,
            "value.v_weight_decay": 1e-3,
            "value.clamp_norm_factor": 4.0,
            "mom2": None,
        },
        "MEMIT": {
            "layers": (4, 5, 6, 7, 8),
            "value.v_num_grad_steps": 25,
            "value.clamp_norm_factor": 4.0,
            "mom2_update_weight": 15_000.0,
        },
        "FT-L": {"layers": (21,), "num_steps": 25, "lr": 5e-4, "norm_constraint": None, "batch_size": 1},
        "AlphaEdit": {"layers": (4, 5, 6, 7, 8), "value.v_lr": 0.1, "nullspace_threshold": 2e-2, "L2": 10.0},
        "GRACE": {"layer": 27, "eps": 1.0, "n_iter": 50, "edit_lr": 1.0},
        "IKE": {"demonstrations": 16},
        "SAKE": {"regularization": 0.5},
    },
}


def read_editors(config: Path, folder: Path) -> dict[str, Editor]:
    """The editors of a config file, made as the command line makes them."""

    def given(editors: dict[str, Editor]) -> dict[str, Editor]:
        return editors

    editors = yaml.safe_load(config.read_text("utf-8"))["editors"]
    if "lab" not in config.stem:
        del editors["IKE"]["init_args"]["pool"]  # a download
    alone = folder / "editors.yaml"
    alone.write_text(yaml.safe_dump({"editors": editors}), "utf-8")
    made: dict[str, Editor] = auto_cli(given, as_positional=False, args=["--config", str(alone)])
    return made


def setting(editor, path):
    value = editor.config
    for name in path.split("."):
        value = getattr(value, name)
    return value


@pytest.mark.parametrize("model", PUBLISHED)
def test_published_settings(model, tmp_path):
    editors = read_editors(CONFIGS / f"compare_{model}.yaml", tmp_path)
    for name, settings in PUBLISHED[model].items():
        for path, value in settings.items():
            assert setting(editors[name], path) == value, (name, path)
    for name in ("ROME", "MEMIT"):
        value = editors[name].config.value  # type: ignore[attr-defined]
        assert (value.v_lr, value.kl_factor, value.early_stop_loss) == (0.5, 0.0625, 0.05)
        assert sum(count for _, count in value.context_template_length_params) == {"ROME": 20, "MEMIT": 5}[name]


@pytest.mark.parametrize("model", ["lab-gpt2", "lab-llama"])
def test_each_editor_changes_facts_of_the_lab_and_gives_them_back(model, tmp_path, monkeypatch):
    monkeypatch.setenv("MEGA_PL_CACHE", str(tmp_path))
    backbone, data = load(model), LabDataModule(split="test", limit=3)
    data.setup("fit")
    digest = backbone.digest()
    editors = read_editors(CONFIGS / f"compare_{model.replace('-', '_')}.yaml", tmp_path)
    del editors["MEGA"]  # slow for single edits, and tested elsewhere
    assert {type(editor) for editor in editors.values()} >= {Ike, Sake}
    for name, editor in editors.items():
        took = []
        for request in data.requests:
            new, true = (backbone.answer_ids(request.filled, o)[0] for o in (request.target_new, request.target_true))
            with editor.edit(backbone, [request]) as edited:
                took.append(int(backbone.last_logits(backbone.encode([edited.prompt(request.filled)])).argmax()) == new)
            assert int(backbone.last_logits(backbone.encode([request.filled])).argmax()) == true
        assert sum(took) >= 2, name
        assert backbone.digest() == digest
