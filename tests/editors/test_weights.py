from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mega_pl.backbone import blocks
from mega_pl.editors.weights import Projection, assign, restored
from tests.editors.conftest import hook_count

PATHS = {"gpt2": "mlp.c_proj", "llama": "mlp.down_proj"}


@pytest.fixture(params=["gpt2", "llama", "gpt_neox", "gemma2"])
def projection(request, tiny_backbone):
    return Projection.of(tiny_backbone(request.param), 1)


def matrix(projection):
    """W (D, F), whatever the module stores."""
    weight = projection.weight.detach()
    return weight.T if weight.shape == (64, 32) else weight


def test_it_is_the_modules_linear_map(projection):
    keys = torch.randn(5, projection.width, generator=torch.Generator().manual_seed(0))
    bias = dict(projection.module.named_parameters()).get("bias")
    torch.testing.assert_close(projection.module(keys), F.linear(keys, matrix(projection), bias))
    assert projection.width == 64


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_it_is_the_named_module_of_the_layer(tiny_backbone, model_type):
    backbone = tiny_backbone(model_type)
    assert Projection.of(backbone, 2).module is blocks(backbone.model)[2].get_submodule(PATHS[model_type])


def test_adding_adds_to_the_matrix(projection):
    before, delta = matrix(projection).clone(), torch.randn(32, 64, generator=torch.Generator().manual_seed(1))
    projection.add(delta)
    torch.testing.assert_close(matrix(projection), before + delta)


def test_a_sum_is_rounded_once(tiny_backbone):
    projection = Projection.of(tiny_backbone("llama", "bfloat16"), 0)
    before, delta = matrix(projection).clone(), torch.full((32, 64), 1e-3, dtype=torch.float64)
    projection.add(delta)
    assert torch.equal(matrix(projection), (before.float() + delta.float()).bfloat16())


def test_inputs_and_outputs_are_recorded(projection, tiny_backbone):
    keys, mask = torch.randn(2, 3, 64), torch.tensor([[1, 0, 1], [0, 1, 1]]).bool()
    with projection.record(mask) as seen:
        output = projection.module(keys)
    assert torch.equal(seen.keys, keys[mask])
    assert torch.equal(seen.values, output.detach()[mask])
    with projection.record((torch.arange(2), torch.tensor([2, 0]))) as seen:
        projection.module(keys)
    assert torch.equal(seen.keys, torch.stack([keys[0, 2], keys[1, 0]]))
    assert hook_count(projection.module) == 0


def test_a_shift_is_added_at_its_positions_only_and_gets_the_gradient(projection):
    keys, shift = torch.randn(2, 3, 64), torch.randn(32, requires_grad=True)
    bare = projection.module(keys)
    with projection.shifted(shift, torch.tensor([2, 0])):
        moved = projection.module(keys)
    torch.testing.assert_close(moved[0, 2], bare[0, 2] + shift)
    torch.testing.assert_close(moved[1, 0], bare[1, 0] + shift)
    assert torch.equal(moved[0, :2], bare[0, :2])
    assert torch.equal(moved[1, 1:], bare[1, 1:])
    moved.sum().backward()
    torch.testing.assert_close(shift.grad, torch.full((32,), 2.0))
    assert hook_count(projection.module) == 0


def test_parameters_are_restored_to_the_bit_after_an_exception():
    module: Any = nn.Linear(3, 2)
    before, place = module.weight.detach().clone(), module.weight.data_ptr()

    def fail():
        with restored([module.weight]):
            assign(module.weight, torch.zeros(2, 3))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert torch.equal(module.weight, before)
    assert module.weight.data_ptr() == place


def test_what_is_refused(tiny_backbone):
    backbone = tiny_backbone("gpt2")
    with pytest.raises(ValueError, match=r"`layers` must lie in \[0, 3\] for this model, but got 4"):
        Projection.of(backbone, 4)
    with pytest.raises(FloatingPointError, match="must leave the weights finite"):
        assign(nn.Parameter(torch.zeros(2)), torch.tensor([1.0, float("inf")]))
    half = nn.Parameter(torch.zeros(1, dtype=torch.float16))
    with pytest.raises(FloatingPointError, match="a wider dtype"):
        assign(half, torch.tensor([1e6]))


@pytest.mark.parametrize(
    ("weight", "kind"),
    [
        (nn.Parameter(torch.zeros(2, 2, dtype=torch.uint8), requires_grad=False), "uint8"),
        (nn.Parameter(torch.zeros(2, 2, device="meta")), "meta"),
    ],
)
def test_weights_that_are_no_plain_numbers_are_refused(tiny_backbone, weight, kind):
    backbone = tiny_backbone("gpt2")
    backbone.model.get_submodule("transformer.h.0.mlp.c_proj").weight = weight
    with pytest.raises(ValueError, match=f"block 0 has {kind} ones; load the backbone without quantisation"):
        Projection.of(backbone, 0)


def test_a_wrong_orientation_is_seen(tiny_backbone):
    """A control: in the other layout the same edit writes something else."""
    projection = Projection.of(tiny_backbone("gpt2"), 0)
    as_linear = Projection(SimpleNamespace(get_parameter=projection.module.get_parameter))  # type: ignore[arg-type]
    assert projection.transposed
    assert not as_linear.transposed
    with pytest.raises(RuntimeError):
        as_linear.add(torch.zeros(32, 64))
