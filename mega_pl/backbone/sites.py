"""Names for the places in a decoder block where activations are read and written."""

from __future__ import annotations

from dataclasses import dataclass
from functools import total_ordering
from typing import Literal, get_args

from mega_pl.errors import MegaValueError

SiteKind = Literal["attn_out", "resid_mid", "mlp_out", "resid_post"]
"""In the order in which a forward pass reaches them."""

SITE_KINDS: tuple[SiteKind, ...] = get_args(SiteKind)


@total_ordering
@dataclass(frozen=True)
class Site:
    """One activation of width D in one decoder block, named as TransformerLens names it.

    With x the stream that enters the block, `attn_out` is the a that attention adds to it, `resid_mid` is x + a,
    `mlp_out` is the m that the MLP adds, and `resid_post` is the stream that leaves the block. Sites sort in the
    order in which a forward pass reaches them.

    >>> Site(5, "resid_mid")
    Site(layer=5, kind='resid_mid')
    >>> str(Site.parse("resid_mid.5"))
    'resid_mid.5'

    Args:
        layer: 0-based decoder block.
        kind: which of the block's activations.

    Raises:
        ValueError: if the layer is negative or the kind unknown.
    """

    layer: int
    kind: SiteKind

    def __post_init__(self) -> None:
        """Refuse what no model can have."""
        if self.layer < 0:
            raise MegaValueError(f"`layer` must be 0 or more, but got {self.layer}.")
        if self.kind not in SITE_KINDS:
            raise MegaValueError(f"`kind` must be one of {', '.join(SITE_KINDS)}, but got {self.kind!r}.")

    def __lt__(self, other: Site) -> bool:
        """Whether a forward pass reaches this site before the other."""
        return (self.layer, SITE_KINDS.index(self.kind)) < (other.layer, SITE_KINDS.index(other.kind))

    def __str__(self) -> str:
        """Return the form that `parse` reads."""
        return f"{self.kind}.{self.layer}"

    @classmethod
    def parse(cls, text: str) -> Site:
        """Read a site written as KIND.LAYER.

        Args:
            text: for example "resid_mid.5".

        Raises:
            ValueError: if the text has another form.
        """
        kinds: dict[str, SiteKind] = {kind: kind for kind in SITE_KINDS}
        name, _, layer = text.partition(".")
        if name not in kinds or not (layer.isascii() and layer.isdigit()):
            raise MegaValueError(
                f"a site must be written KIND.LAYER with KIND one of {', '.join(SITE_KINDS)} "
                f"(for example resid_mid.5), but got {text!r}."
            )
        return cls(int(layer), kinds[name])
