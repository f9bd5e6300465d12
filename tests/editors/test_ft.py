from dataclasses import replace

import pytest
import torch

from mega_pl.editors import FineTuning, FineTuningConfig
from mega_pl.editors.weights import Projection
from tests.editors.conftest import DARRIEUX, FRANCE, GERMANY, last_logits

CONFIG = FineTuningConfig(layers=(1,), num_steps=4, lr=1e-2)
OBJECTIVES = pytest.mark.parametrize("objective", ["prompt_last", "target_new"])


def slow_loss(backbone, request, objective, end=()):
    """Token by token."""
    answer = [*backbone.answer_ids(request.filled, request.target_new), *end]
    ids, losses = list(backbone.tokenizer(request.filled)["input_ids"]), []
    for i, token in enumerate(answer):
        before = ids if objective == "prompt_last" else ids + answer[:i]
        losses.append(-backbone.model(torch.tensor([before])).logits[0, -1].log_softmax(-1)[token])
    return torch.stack(losses).mean()


def trained(backbone, layer=1):
    return list(Projection.of(backbone, layer).module.parameters())


def weights_inside(backbone, config, requests, layer=1):
    with FineTuning(config).edit(backbone, requests):
        return [parameter.detach().clone() for parameter in trained(backbone, layer)]


@OBJECTIVES
@pytest.mark.parametrize("requests", [[FRANCE, DARRIEUX, GERMANY]])
def test_training_is_that_of_the_literal_loop(tiny_backbone, objective, requests):
    """Batches of two, weight and bias, Adam with decay: on the model's own parameters, one prompt at a time."""
    backbone = tiny_backbone("gpt2")
    config = replace(CONFIG, objective_optimization=objective, batch_size=2, weight_decay=0.1)
    found = weights_inside(backbone, config, requests)
    parameters = trained(backbone)
    assert len(parameters) == 2
    for parameter in parameters:
        parameter.requires_grad_()
    adam = torch.optim.Adam(parameters, lr=config.lr, weight_decay=0.1)
    for _ in range(config.num_steps):
        for batch in (requests[:2], requests[2:]):
            adam.zero_grad()
            torch.stack([slow_loss(backbone, request, objective) for request in batch]).mean().backward()
            adam.step()
    for one, parameter in zip(found, parameters, strict=True):
        torch.testing.assert_close(one, parameter.detach(), rtol=1e-3, atol=1e-4)


def test_the_end_token_is_asked_for_after_the_object(tiny_backbone):
    """LocFT: one step on the mean over the tokens and the end is the literal one; without the end it is another."""
    backbone = tiny_backbone("gpt2")
    config = replace(CONFIG, objective_optimization="target_new", append_eos=True, num_steps=1, batch_size=100)
    found = weights_inside(backbone, config, [FRANCE, DARRIEUX])
    without = weights_inside(backbone, replace(config, append_eos=False), [FRANCE, DARRIEUX])
    parameters, end = trained(backbone), [backbone.tokenizer.eos_token_id]
    adam = torch.optim.Adam([parameter.requires_grad_() for parameter in parameters], lr=config.lr)
    torch.stack([slow_loss(backbone, request, "target_new", end) for request in (FRANCE, DARRIEUX)]).mean().backward()
    adam.step()
    for one, other, parameter in zip(found, without, parameters, strict=True):
        torch.testing.assert_close(one, parameter.detach(), rtol=1e-3, atol=1e-4)
        assert not torch.allclose(one, other, atol=1e-5)
    assert FineTuning(config).name == "locft"


def test_both_objectives_agree_on_an_object_of_one_token(backbone):
    request = replace(FRANCE, target_new=backbone.tokenizer.decode(backbone.answer_ids("Rome is", "the")).strip())
    assert len(backbone.answer_ids(request.filled, request.target_new)) == 1
    last, forced = (
        weights_inside(backbone, replace(CONFIG, objective_optimization=objective), [request])
        for objective in ("prompt_last", "target_new")
    )
    torch.testing.assert_close(last, forced, rtol=1e-4, atol=1e-5)


@OBJECTIVES
def test_no_weight_moves_farther_than_the_clamp(backbone, objective):
    before = [parameter.detach().clone() for parameter in trained(backbone)]
    config = replace(CONFIG, objective_optimization=objective, lr=0.05, norm_constraint=0.02)
    moves = [a - b for a, b in zip(weights_inside(backbone, config, [FRANCE]), before, strict=True)]
    for move in moves:
        assert move.abs().max() <= 0.02 + 1e-6
        assert move.abs().max() > 0.0199  # and the clamp is what holds it


@OBJECTIVES
def test_a_loss_that_is_low_enough_makes_no_step(backbone, objective):
    before = [parameter.detach().clone() for parameter in trained(backbone)]
    config = replace(CONFIG, objective_optimization=objective, early_stop_loss=1e6)
    for one, parameter in zip(weights_inside(backbone, config, [FRANCE]), before, strict=True):
        assert torch.equal(one, parameter)


@OBJECTIVES
def test_only_the_named_layers_change(backbone, objective):
    state = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    with FineTuning(replace(CONFIG, layers=(1, 3), objective_optimization=objective)).edit(backbone, [FRANCE]):
        changed = {name for name, tensor in backbone.model.state_dict().items() if not torch.equal(tensor, state[name])}
    names = dict(backbone.model.named_parameters())
    expected = {name for name, p in names.items() for layer in (1, 3) if any(p is q for q in trained(backbone, layer))}
    assert changed == expected


def test_a_fit_that_diverges_is_refused_and_leaves_the_weights(tiny_backbone):
    backbone = tiny_backbone("gpt2")
    bare = last_logits(backbone, FRANCE.filled)
    config = replace(CONFIG, lr=1e30)
    with pytest.raises(FloatingPointError, match="must leave the weights finite"):  # noqa: SIM117
        with FineTuning(config).edit(backbone, [FRANCE]):
            pass
    assert torch.equal(last_logits(backbone, FRANCE.filled), bare)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": ()}, r"`layers` must be one or more different blocks, but got \(\)"),
        ({"layers": (1, 1)}, "different blocks"),
        (
            {"objective_optimization": "bag"},
            "`objective_optimization` must be one of prompt_last, target_new, but got 'bag'",
        ),
        ({"num_steps": 0}, "`num_steps` must be at least 1"),
        ({"batch_size": 0}, "`batch_size` must be at least 1"),
        ({"lr": 0.0}, "`lr` must be above 0"),
        ({"append_eos": True}, "`append_eos` must be given with `objective_optimization` target_new"),
        ({"norm_constraint": 0.0}, "`norm_constraint` must be above 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        FineTuningConfig(**{"layers": (1,), **settings})
