"""Changes of importance by edits, and the contrast of successes with failures, against loops."""

from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest
import torch

from mega_pl.attribution.contrast import Changes, Contrast, changes_by, contrast_of
from mega_pl.attribution.layers import layer_importance
from mega_pl.backbone import Site, steer
from mega_pl.editors import Edited, Editor, Ike
from mega_pl.edits import EditCase, EditRequest, Probe

CASES = [
    EditCase(
        request=EditRequest(
            edit_id="france", prompt="{} has its capital in", subject="France", target_new="Rome", target_true="Paris"
        ),
        paraphrase_prompts=("The capital of France is", "He was born in the capital of France,"),
    ),
    EditCase(
        request=EditRequest(
            edit_id="italy", prompt="The capital of {} is", subject="Italy", target_new="Paris", target_true="Rome"
        ),
    ),
]


@dataclass(frozen=True)
class Pushing(Editor):
    """Moves the stream at a site of every prompt."""

    site: Site
    size: float = 2.0
    name = "pushing"

    @contextmanager
    def edit(self, backbone, requests):
        push = torch.linspace(-self.size, self.size, backbone.width)
        with steer(backbone.model, {self.site: lambda x: x + push}):
            yield Edited()


@dataclass(frozen=True)
class PushingHead(Editor):
    """Moves what the final norm hands on, as SAKE does."""

    name = "head"

    @contextmanager
    def edit(self, backbone, requests):
        norm = backbone.model.get_submodule(backbone.layout.final_norm)
        handle = norm.register_forward_hook(lambda _, __, output: output + torch.linspace(-1, 1, output.shape[-1]))
        yield Edited()
        handle.remove()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_changes_of_layers_add_up_to_the_change_of_the_whole(tiny_backbone, family):
    backbone = tiny_backbone(family)
    found = changes_by(backbone, Pushing(Site(1, "resid_mid")), CASES)
    assert found.edits == ("france", "france", "france", "italy")
    assert found.layers.shape == (4, 2, 2, 4)
    torch.testing.assert_close(found.layers.sum((2, 3)), found.total, atol=1e-4, rtol=0)
    assert found.total.abs().max() > 0.1  # control: the edit does change something


def test_layers_before_the_edit_change_only_with_the_scale_of_the_last_norm(tiny_backbone):
    backbone = tiny_backbone("llama")
    late = changes_by(backbone, Pushing(Site(3, "resid_mid"), size=1e-3), CASES)
    assert late.layers[..., :3].abs().max() < late.layers[..., 3].abs().max()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_what_is_done_after_the_last_block_is_no_layers_doing(tiny_backbone, family):
    found = changes_by(tiny_backbone(family), PushingHead(), CASES)
    assert torch.equal(found.layers, torch.zeros_like(found.layers))
    assert found.readout.abs().min() > 1e-3


def test_success_is_what_the_criterion_says(tiny_backbone):
    backbone = tiny_backbone("gpt2")
    editor = Pushing(Site(2, "resid_post"))
    by_argmax, by_chance = (changes_by(backbone, editor, CASES, criterion=c) for c in ("argmax", "probability"))
    prompts = [prompt for case in CASES for prompt in (case.request.filled, *case.paraphrase_prompts)]
    owner = [case.request for case in CASES for _ in (0, *case.paraphrase_prompts)]
    with editor.edit(backbone, []):
        for n, (prompt, request) in enumerate(zip(prompts, owner, strict=True)):
            logits = backbone.last_logits(backbone.encode([prompt]))[0]
            new, true = (backbone.answer_ids(prompt, o)[0] for o in (request.target_new, request.target_true))
            if new != true:
                assert by_argmax.success[n] == (logits.argmax() == new)
                assert by_chance.success[n] == (logits[new] > logits[true])


def test_an_edit_that_is_followed_took_and_one_that_is_not_did_not(lab_backbone):
    curie = EditRequest(
        edit_id="curie", prompt="{} was born in", subject="Marie Curie", target_new="Rome", target_true="Warsaw"
    )
    case = EditCase(request=curie)
    assert changes_by(lab_backbone, Ike(), [case]).success.tolist() == [True]
    still = changes_by(lab_backbone, Pushing(Site(1, "resid_mid"), size=0.0), [case])
    assert still.success.tolist() == [False]


def test_an_edit_is_also_asked_under_other_names_of_its_subject(tiny_backbone):
    aliased = replace(
        CASES[1], subject_aliasing=(Probe(prompt="The capital of the Italian Republic is", answers=("Paris",)),)
    )
    backbone, editor = tiny_backbone("gpt2"), Pushing(Site(1, "resid_mid"))
    found, bare = changes_by(backbone, editor, [aliased]), changes_by(backbone, editor, [CASES[1]])
    assert found.edits == ("italy", "italy")
    torch.testing.assert_close(found.layers[0], bare.layers[0], atol=1e-4, rtol=1e-3)


def test_objects_that_begin_alike_are_compared_where_they_differ(tiny_backbone):
    backbone = tiny_backbone("gpt2")
    request = EditRequest(edit_id="a", prompt="{} is", subject="Rome", target_new="Paris is", target_true="Paris of")
    found = changes_by(backbone, Pushing(Site(1, "resid_mid")), [EditCase(request=request)])
    targets = [[backbone.answer_ids("Rome is Paris", word)[0] for word in ("is", "of")]]
    before = layer_importance(backbone, ["Rome is Paris"], targets)
    with Pushing(Site(1, "resid_mid")).edit(backbone, []):
        after = layer_importance(backbone, ["Rome is Paris"], targets)
    torch.testing.assert_close(found.layers[:, :, 0], after.attention - before.attention)
    torch.testing.assert_close(found.layers[:, :, 1], after.mlp - before.mlp)
    assert not torch.allclose(found.layers[0, 0], found.layers[0, 1])  # control: the objects are told apart there


def test_an_object_that_begins_with_all_of_the_other_is_refused(tiny_backbone):
    request = EditRequest(edit_id="a", prompt="{} is", subject="Rome", target_new="Paris", target_true="Paris is")
    with pytest.raises(ValueError, match="must not begin with all of the other, but those of edit 'a'"):
        changes_by(tiny_backbone("gpt2"), Pushing(Site(1, "resid_mid")), [EditCase(request=request)])


def test_bad_requests_are_refused(tiny_backbone):
    backbone, editor = tiny_backbone("gpt2"), Pushing(Site(1, "resid_mid"))
    with pytest.raises(ValueError, match="`cases` must hold at least one edit, but got none"):
        changes_by(backbone, editor, [])
    with pytest.raises(ValueError, match="`criterion` must be one of argmax, probability, but got 'luck'"):
        changes_by(backbone, editor, CASES, criterion="luck")  # type: ignore[arg-type]


def made_up(editor, edits=12, prompts=3, seed=0, wins=0.5):
    generator = torch.Generator().manual_seed(seed)
    n = edits * prompts
    names = tuple(f"e{i % edits:02}" for i in range(n))
    layers = torch.randn(n, 2, 2, 5, generator=generator)
    success = torch.rand(n, generator=generator) < wins
    layers[success, 0, 0, 3] += 4.0
    return Changes(editor, names, success, layers, layers.sum((2, 3)), torch.zeros(n, 2))


def slow(of_editors):
    """Success minus failure by loops, editors counting equally."""
    mean = torch.zeros(2, 2, 5)
    for one in of_editors:
        for sign, group in ((1, one.success), (-1, ~one.success)):
            rows = [one.layers[n] for n in range(len(one.edits)) if group[n]]
            mean += sign * sum(rows) / len(rows) / len(of_editors)
    return mean


def test_a_contrast_is_that_of_a_loop_and_its_interval_covers_it():
    of_editors = [made_up("a"), made_up("b", seed=1, wins=0.7)]
    found = contrast_of(of_editors, least=5)
    torch.testing.assert_close(found.mean, slow(of_editors))
    assert (found.low < found.mean).all()
    assert (found.mean < found.high).all()
    assert found.low[0, 0, 3] > 0  # control: the layer that makes the difference is seen
    assert int((found.low > 0).sum() + (found.high < 0).sum()) <= 4


def test_a_contrast_does_not_depend_on_the_order_of_prompts():
    one = made_up("a")
    order = torch.randperm(len(one.edits), generator=torch.Generator().manual_seed(1))
    other = Changes(
        "a", tuple(one.edits[i] for i in order), one.success[order], one.layers[order], one.total, one.readout
    )
    torch.testing.assert_close(contrast_of([one], least=5).low, contrast_of([other], least=5).low)


def test_editors_with_too_few_of_either_are_counted_but_not_contrasted():
    found = contrast_of([made_up("a"), made_up("b", wins=1.0)], least=5)
    assert list(found.success) == ["a"]
    assert found.counts["b"] == (36, 0)
    with pytest.raises(
        ValueError, match="at least 5 successes and failures to be contrasted, but got b 36 and 0; take"
    ):
        contrast_of([made_up("b", wins=1.0)], least=5)


def test_a_contrast_survives_json():
    found = contrast_of([made_up("a")], least=5)
    again = Contrast.from_json(found.to_json())
    assert torch.equal(again.mean, found.mean)
    assert again.counts == found.counts
    assert torch.equal(again.success["a"], found.success["a"])
