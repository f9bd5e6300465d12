"""Ways to edit facts behind one small protocol: contexts that edit a backbone and give it back bit-exact."""

from mega_pl.asking import Edited
from mega_pl.editors.alphaedit import AlphaEdit, AlphaEditConfig
from mega_pl.editors.ft import FineTuning, FineTuningConfig
from mega_pl.editors.grace import Grace, GraceConfig
from mega_pl.editors.ike import Ike, IkeConfig
from mega_pl.editors.in_context import InContext, InContextConfig
from mega_pl.editors.mega import Mega
from mega_pl.editors.memit import Memit, MemitConfig
from mega_pl.editors.mom2 import Mom2Config, second_moments
from mega_pl.editors.protocol import Editor
from mega_pl.editors.rome import Rome, RomeConfig
from mega_pl.editors.sake import Sake, SakeConfig
from mega_pl.editors.texts import TextConfig
from mega_pl.editors.values import ValueConfig

__all__ = [
    "AlphaEdit",
    "AlphaEditConfig",
    "Edited",
    "Editor",
    "FineTuning",
    "FineTuningConfig",
    "Grace",
    "GraceConfig",
    "Ike",
    "IkeConfig",
    "InContext",
    "InContextConfig",
    "Mega",
    "Memit",
    "MemitConfig",
    "Mom2Config",
    "Rome",
    "RomeConfig",
    "Sake",
    "SakeConfig",
    "TextConfig",
    "ValueConfig",
    "second_moments",
]
