"""Whether what the model writes is an edit's whole object."""

from typing import Any

import pytest
import torch

from mega_pl.backbone import Site
from mega_pl.edits import EditBank, EditRequest
from mega_pl.edits.routing import CentreRouter
from mega_pl.fitting.outcomes import missed_objects
from mega_pl.functional import shifting, stack

REQUESTS = tuple(
    EditRequest(edit_id=name, prompt="{} is in", subject=name, target_new="Spain", target_true="Italy")
    for name in ("Rome", "The city of Rome")
)


@pytest.mark.parametrize(("right", "missed"), [((2, 3), []), ((1, 3), ["Rome"]), ((2, 0), ["The city of Rome"])])
def test_an_object_counts_if_all_its_ids_are_written(tiny_backbone, monkeypatch, right, missed):
    """Each object is what the model writes, as far as ``right`` ids of it, and another id behind."""
    backbone = tiny_backbone("gpt2")
    still = shifting(torch.zeros(backbone.width))
    origin: Any = {"name": "", "revision": None, **backbone.fingerprint}
    router = CentreRouter(torch.zeros(2, backbone.width), torch.zeros(2), layer=0)
    bank = EditBank(REQUESTS, {Site(1, "resid_mid"): stack([still, still])}, router, 1.0, origin, {})
    objects = {}
    for request, count, size in zip(REQUESTS, right, (2, 3), strict=True):
        ids = torch.tensor([backbone.tokenizer(request.filled)["input_ids"]])
        new = backbone.model.generate(ids, max_new_tokens=size, min_new_tokens=size, do_sample=False, pad_token_id=0)
        written = new[0, ids.shape[1] :].tolist()
        objects[request.filled] = [*written[:count], *(383 - token for token in written[count:])]
    monkeypatch.setattr(backbone, "answer_ids", lambda prompt, _: objects[prompt])
    assert list(missed_objects(backbone, bank)) == missed
