"""Lightning callbacks, imported as `mega_pl.callbacks`."""

from .bank_checkpoint import BankCheckpoint
from .edits_in_force import EditsInForce
from .layer_selection import AttributionLayerSelection
from .result_table import ResultTable

__all__ = ["AttributionLayerSelection", "BankCheckpoint", "EditsInForce", "ResultTable"]
