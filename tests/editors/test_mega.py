import pytest
import torch

from mega_pl.editors import Mega
from mega_pl.edits import RouterConfig
from mega_pl.fitting import FitConfig, MapConfig, PromptConfig, fit
from tests.editors.conftest import DARRIEUX, FRANCE, GERMANY, last_logits

REQUESTS = [FRANCE, GERMANY, DARRIEUX]
CONFIG = FitConfig(
    sites=("resid_mid.2", "resid_post.3"),
    maps=MapConfig(strength=0.7),
    router=RouterConfig(layer=1),
    prompts=PromptConfig(prefixes=1),
)


def test_it_is_the_bank_that_is_fitted_and_applied(backbone):
    bank = fit(backbone, REQUESTS, CONFIG)
    prompts = [request.filled for request in REQUESTS]
    with bank.apply(backbone) as use:
        wanted = last_logits(backbone, *prompts)
    with Mega(CONFIG).edit(backbone, REQUESTS) as edited:
        assert torch.equal(last_logits(backbone, *prompts), wanted)
        assert edited.fired == use.fired == ["france", "germany", "darrieux"]


def test_routes_are_taken_and_given_back_to_the_router(backbone):
    bare = last_logits(backbone, FRANCE.filled, GERMANY.filled)
    with Mega(CONFIG).edit(backbone, REQUESTS) as edited:
        edited.route(["germany", None])
        logits = last_logits(backbone, FRANCE.filled, GERMANY.filled)
        assert edited.fired == ["germany", None]
        assert torch.equal(logits[1], bare[1])
        assert not torch.equal(logits[0], bare[0])
        edited.route(forced=True)
        last_logits(backbone, "He works as a")
        assert edited.fired != [None]
        edited.route()
        last_logits(backbone, GERMANY.filled)
        assert edited.fired == ["germany"]
        with pytest.raises(KeyError, match="`edits` must name edits in force, but got 'rome'"):
            edited.route(["rome"])


def test_a_site_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"a site must be written KIND\.LAYER"):
        FitConfig(sites=("resid.2",))
