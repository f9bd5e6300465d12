"""What every editor promises, whatever its method."""

import pytest
import torch

from mega_pl.backbone import load
from tests.editors.conftest import DARRIEUX, FRANCE, GERMANY, NAMES, WEIGHTS, hook_count, last_logits

every_editor = pytest.mark.parametrize("editor", NAMES, indirect=True)
PROMPTS = [FRANCE.filled, "Berlin is the capital of", DARRIEUX.filled]


def told(edited, prompts=PROMPTS):
    return [edited.prompt(prompt) for prompt in prompts]


@every_editor
def test_it_changes_what_the_model_says_and_gives_the_model_back_to_the_bit(backbone, editor):
    digest, count, bare = backbone.digest(), hook_count(backbone.model), last_logits(backbone, *PROMPTS)
    with editor.edit(backbone, [FRANCE]) as edited:
        inside = last_logits(backbone, *told(edited))
    assert not torch.allclose(inside[0], bare[0], atol=1e-3)
    assert backbone.digest() == digest
    assert hook_count(backbone.model) == count
    assert torch.equal(last_logits(backbone, *PROMPTS), bare)
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in backbone.model.parameters())


@every_editor
def test_it_gives_the_model_back_after_an_exception(backbone, editor):
    digest, count = backbone.digest(), hook_count(backbone.model)
    with pytest.raises(KeyError, match="inside"), editor.edit(backbone, [FRANCE]):
        raise KeyError("inside")
    assert backbone.digest() == digest
    assert hook_count(backbone.model) == count


@every_editor
def test_it_makes_the_new_object_likelier(backbone, editor):
    new = backbone.answer_ids(FRANCE.filled, FRANCE.target_new)[0]
    before = last_logits(backbone, FRANCE.filled).log_softmax(-1)[0, new]
    with editor.edit(backbone, [FRANCE]) as edited:
        after = last_logits(backbone, *told(edited, [FRANCE.filled])).log_softmax(-1)[0, new]
    if editor.name in (*WEIGHTS, "grace"):  # a random model does not follow contexts
        assert after > before + 0.05
    else:
        assert after != before


@every_editor
def test_the_same_edit_twice_is_the_same_to_the_bit(backbone, editor):
    found = []
    for _ in range(2):
        with editor.edit(backbone, [FRANCE]) as edited:
            found.append(last_logits(backbone, *told(edited)))
    assert torch.equal(*found)


@every_editor
def test_many_edits_at_once_and_alone_differ(backbone, editor):
    requests = [FRANCE, GERMANY, DARRIEUX]
    with editor.edit(backbone, requests) as edited:
        if editor.name in ("sake", "mega", "grace"):
            edited.route([request.edit_id for request in requests])
        together = last_logits(backbone, *told(edited, [request.filled for request in requests]))
    bare = last_logits(backbone, *(request.filled for request in requests))
    assert not torch.isclose(together, bare, atol=1e-3).all(1).any()


@pytest.mark.parametrize("editor", WEIGHTS, indirect=True)
def test_edits_in_sequence_are_edits_within_one_another(backbone, editor):
    """Each is written into the weights that the last one left; the model is given back when one looks no further."""
    digest = backbone.digest()
    with editor.edit(backbone, [FRANCE]):
        first = last_logits(backbone, *PROMPTS)
        if editor.name != "alphaedit":  # which keeps what it wrote before
            with editor.edit(backbone, [GERMANY]):
                second = last_logits(backbone, *PROMPTS)
    states = editor.sequence(backbone, [FRANCE, GERMANY, DARRIEUX], [1, 2, 3])
    next(states)
    assert torch.equal(last_logits(backbone, *PROMPTS), first)
    next(states)
    if editor.name != "alphaedit":
        assert torch.equal(last_logits(backbone, *PROMPTS), second)
    assert not torch.equal(last_logits(backbone, *PROMPTS), first)
    states.close()
    assert backbone.digest() == digest


@every_editor
def test_generation_with_a_cache_begins_with_what_the_logits_say(backbone, editor):
    with editor.edit(backbone, [FRANCE]) as edited:
        encoded = backbone.encode([edited.prompt(FRANCE.filled)])
        first = backbone.last_logits(encoded).argmax(-1)
        written = backbone.model.generate(
            input_ids=encoded.input_ids,
            attention_mask=encoded.attention_mask,
            max_new_tokens=4,
            min_new_tokens=4,
            do_sample=False,
            pad_token_id=0,
        )
    assert written.shape[1] == encoded.input_ids.shape[1] + 4
    assert written[0, encoded.input_ids.shape[1]] == first[0]


@every_editor
def test_it_works_inside_inference_mode_and_leaves_the_modes_of_gradients_alone(backbone, editor):
    with editor.edit(backbone, [FRANCE]) as edited:
        usual = last_logits(backbone, *told(edited))
        assert torch.is_grad_enabled()
    with torch.inference_mode(), editor.edit(backbone, [FRANCE]) as edited:
        assert torch.is_inference_mode_enabled()
        torch.testing.assert_close(last_logits(backbone, *told(edited)).clone(), usual)


@every_editor
def test_a_model_of_the_callers_own_keeps_its_flags_and_gets_no_gradient(tiny_model, tiny_tokenizer, editor):
    model = tiny_model("gpt2", {"max_position_embeddings": 1024})
    model.transformer.h[0].requires_grad_(False)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    backbone = load(model, tiny_tokenizer)
    digest, bare = backbone.digest(), last_logits(backbone, FRANCE.filled)
    with editor.edit(backbone, [FRANCE]) as edited:
        assert not torch.equal(last_logits(backbone, *told(edited, [FRANCE.filled])), bare)
    assert backbone.digest() == digest
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert all(parameter.grad is None for parameter in model.parameters())


@every_editor
def test_narrow_weights_are_edited_and_given_back(roomy_folder, editor):
    backbone = load(str(roomy_folder("gpt2")), dtype="bfloat16")
    digest, bare = backbone.digest(), last_logits(backbone, FRANCE.filled)
    with editor.edit(backbone, [FRANCE]) as edited:
        assert not torch.equal(last_logits(backbone, *told(edited, [FRANCE.filled])), bare)
        assert {parameter.dtype for parameter in backbone.model.parameters()} == {torch.bfloat16}
    assert backbone.digest() == digest


@every_editor
def test_what_it_refuses(backbone, editor):
    with (
        pytest.raises(ValueError, match="`edits` must hold at least one edit, but got none"),
        editor.edit(backbone, []),
    ):
        pass
    twice = "`edits` must have different ids, but got 'france' more than once"
    with pytest.raises(ValueError, match=twice), editor.edit(backbone, [FRANCE, FRANCE]):
        pass


@every_editor
def test_what_it_says_of_itself_tells_its_settings(editor):
    assert "Config(" in repr(editor)
    assert " at 0x" not in repr(editor)
