import pytest

from mega_pl.backbone import SITE_KINDS, Site


@pytest.mark.parametrize("kind", SITE_KINDS)
@pytest.mark.parametrize("layer", [0, 7, 31])
def test_parse_reads_what_str_writes(layer, kind):
    site = Site(layer, kind)
    assert str(site) == f"{kind}.{layer}"
    assert Site.parse(str(site)) == site


def test_sites_sort_as_a_forward_pass_reaches_them():
    ordered = [Site(layer, kind) for layer in (2, 10) for kind in ("attn_out", "resid_mid", "mlp_out", "resid_post")]
    assert sorted(reversed(ordered)) == ordered
    assert max(ordered) == Site(10, "resid_post")
    assert Site(2, "resid_mid") <= Site(2, "resid_mid") < Site(2, "mlp_out")


def test_sites_are_keys():
    assert {Site(1, "mlp_out"): "found"}[Site.parse("mlp_out.1")] == "found"


@pytest.mark.parametrize(
    "text", ["resid_mid", "resid_mid.", "resid_mid.-1", "5.resid_mid", "resid_pre.3", "mlp_out.²", ""]
)
def test_parse_refuses_another_form(text):
    with pytest.raises(ValueError, match=r"must be written KIND\.LAYER .* but got"):
        Site.parse(text)


def test_a_site_refuses_what_no_model_has():
    with pytest.raises(ValueError, match="`layer` must be 0 or more, but got -1"):
        Site(-1, "resid_mid")
    with pytest.raises(ValueError, match=r"`kind` must be one of attn_out, .* but got 'resid_pre'"):
        Site(0, "resid_pre")  # type: ignore[arg-type]
