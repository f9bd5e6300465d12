"""Random models that read long prompts, four edits, and every editor with settings that suit such models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from mega_pl.backbone import Backbone, load
from mega_pl.editors import (
    AlphaEdit,
    AlphaEditConfig,
    Editor,
    FineTuning,
    FineTuningConfig,
    Grace,
    GraceConfig,
    Ike,
    IkeConfig,
    InContext,
    Mega,
    Memit,
    MemitConfig,
    Mom2Config,
    Rome,
    RomeConfig,
    Sake,
    SakeConfig,
    TextConfig,
    ValueConfig,
)
from mega_pl.edits import EditCase, EditRequest
from mega_pl.fitting import FitConfig, PromptConfig

VALUE = ValueConfig(
    v_num_grad_steps=8, v_lr=1.0, clamp_norm_factor=8.0, v_weight_decay=1e-3, context_template_length_params=((6, 2),)
)
PROMPTS = PromptConfig(prefixes=1, bare_implications=False)


def capital(edit_id: str, subject: str, new: str, true: str) -> EditRequest:
    return EditRequest(
        edit_id=edit_id,
        prompt="The capital of {} is",
        subject=subject,
        target_new=new,
        target_true=true,
        phrasings=("{} has its capital in", "In {} the capital is"),
    )


FRANCE = capital("france", "France", "Rome", "Paris")
GERMANY = capital("germany", "Germany", "London", "Berlin")
DARRIEUX = EditRequest(
    edit_id="darrieux",
    prompt="The mother tongue of {} is",
    subject="Danielle Darrieux",
    target_new="English or Spanish",
    target_true="French",
    phrasings=("At home {} spoke",),
)
POOL = (
    EditCase(
        request=capital("italy", "Italy", "Paris", "Rome"),
        paraphrase_prompts=("Italy is ruled from",),
        neighborhood_prompts=("The capital of Latium is",),
    ),
    EditCase(request=capital("spain", "Spain", "London", "Madrid")),
)
NAMES = ["rome", "memit", "alphaedit", "ft-l", "ft-m", "locft", "grace", "ike", "in-context", "sake", "mega"]
WEIGHTS = NAMES[:6]


def mom2(folder: Path, **text: object) -> Mom2Config:
    """A quick second moment of the model's own text."""
    return Mom2Config(
        text=TextConfig(documents=24, context=32, **text),  # type: ignore[arg-type]
        ridge=1e-2,
        folder=str(folder),
    )


def make_editors(folder: Path) -> list[Editor]:
    return [
        Rome(RomeConfig(layer=1, value=VALUE, mom2=mom2(folder))),
        Memit(MemitConfig(layers=(1, 2), value=VALUE, mom2=mom2(folder), mom2_update_weight=10.0)),
        FineTuning(FineTuningConfig(layers=(2,), num_steps=5, lr=1e-2, norm_constraint=2e-2)),
        FineTuning(FineTuningConfig(layers=(1, 2), objective_optimization="target_new", num_steps=5, lr=1e-2)),
        FineTuning(
            FineTuningConfig(
                layers=(2,), objective_optimization="target_new", num_steps=5, lr=1e-2, batch_size=100, append_eos=True
            )
        ),
        AlphaEdit(AlphaEditConfig(layers=(1, 2), value=VALUE, mom2=mom2(folder), nullspace_threshold=1e6, L2=1e-3)),
        Grace(GraceConfig(layer=2, n_iter=5, eps=1e-2)),
        Ike(IkeConfig(demonstrations=3), POOL),
        InContext(),
        Sake(SakeConfig(prompts=PROMPTS)),
        Mega(FitConfig(sites=("resid_mid.2",), prompts=PromptConfig(prefixes=1))),
    ]


@pytest.fixture
def editor(request: pytest.FixtureRequest, moments: Path) -> Editor:
    """The editor of a name."""
    return next(editor for editor in make_editors(moments) if editor.name == request.param)


@pytest.fixture(scope="session")
def moments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where second moments are kept for all tests."""
    return tmp_path_factory.mktemp("moments")


@pytest.fixture(scope="session", params=["gpt2", "llama"])
def backbone(request: pytest.FixtureRequest, roomy_folder: Callable[[str], Path]) -> Backbone:
    """One for all tests, because every one gives it back as it was."""
    return load(str(roomy_folder(request.param)))


def hook_count(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def last_logits(backbone: Backbone, *prompts: str) -> torch.Tensor:
    return backbone.last_logits(backbone.encode(prompts))
