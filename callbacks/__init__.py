"""Lightning callbacks, imported as `mega_pl.callbacks`."""

from .bank_checkpoint import BankCheckpoint
from .result_table import ResultTable

__all__ = ["BankCheckpoint", "ResultTable"]
