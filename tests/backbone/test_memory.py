"""Memory known from shapes: against the loaded model, and by what a forward pass really takes."""

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from mega_pl.backbone import Backbone, Site, load, load_outline
from mega_pl.backbone.memory import cache_bytes, device_bytes, forward_bytes, weight_bytes


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "gemma2", "gpt_neox"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_an_outline_is_the_model_without_its_weights(tiny_folder, model_type, dtype):
    folder = str(tiny_folder(model_type))
    outline, backbone = (make(folder, dtype=dtype) for make in (load_outline, load))
    assert {p.device.type for p in outline.model.parameters()} == {"meta"}
    assert weight_bytes(outline) == weight_bytes(backbone) > 0
    assert (outline.dtype, outline.n_layers, outline.width) == (backbone.dtype, backbone.n_layers, backbone.width)
    assert outline.answer_ids("The capital of France is", "Rome") == backbone.answer_ids(
        "The capital of France is", "Rome"
    )
    outline.check_sites([Site(3, "resid_post")])
    with pytest.raises(ValueError, match=r"must lie in \[0, 3\]"):
        outline.check_sites([Site(4, "resid_post")])


def test_an_outline_of_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must be a lab model, a hub name"):
        load_outline(str(tmp_path))
    with pytest.raises(ValueError, match="`dtype` must be one of"):
        load_outline(str(tmp_path), dtype="int8")  # type: ignore[arg-type]


class Widest(TorchDispatchMode):
    """The most bytes of tensors alive at once, weights aside."""

    def __init__(self, model):
        super().__init__()
        self.weights = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
        self.alive, self.most = {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in self.weights:
                storage = tensor.untyped_storage()
                self.alive[storage.data_ptr()] = (StorageWeakRef(storage), storage.nbytes())
        self.alive = {key: entry for key, entry in self.alive.items() if not entry[0].expired()}
        self.most = max(self.most, sum(size for _, size in self.alive.values()))
        return out


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
@pytest.mark.parametrize(("prompts", "tokens"), [(8, 48), (32, 24)])
def test_a_forward_pass_takes_about_what_is_said(tiny_model, tiny_tokenizer, model_type, prompts, tokens):
    own = {"gpt2": {"n_inner": 512}, "llama": {"intermediate_size": 512, "head_dim": 32}}[model_type]
    backbone = Backbone(tiny_model(model_type, {"hidden_size": 128, **own}), tiny_tokenizer)
    encoded = backbone.encode(["a " * (tokens // 2 - 1) + "b"] * prompts)
    with Widest(backbone.model) as seen:
        backbone.last_logits(encoded)
    said = forward_bytes(backbone, prompts, encoded.input_ids.shape[1])
    assert 0.85 * said < seen.most < 1.1 * said


def test_this_machine_has_memory():
    assert device_bytes() > 2**28


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_a_cache_and_its_copy_take_what_is_said(tiny_backbone, model_type):
    backbone = tiny_backbone(model_type)
    encoded = backbone.encode(["The capital of France is", "Rome is"])
    with torch.no_grad():
        cache = backbone.model(**encoded.inputs, use_cache=True).past_key_values
    kept = sum(states.nbytes for layer in cache.layers for states in (layer.keys, layer.values))
    assert cache_bytes(backbone, encoded.input_ids.numel()) == kept
