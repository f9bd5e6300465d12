"""What is to be edited, and the bank of fitted edits."""

from mega_pl.edits.bank import BankHandle, BankUse, EditBank
from mega_pl.edits.gate import NO_EDIT, Gate, GateConfig
from mega_pl.edits.request import ALIAS, EditCase, EditRequest, Mention, Probe, Query, RippleAxis, RippleTest

__all__ = [
    "ALIAS",
    "NO_EDIT",
    "BankHandle",
    "BankUse",
    "EditBank",
    "EditCase",
    "EditRequest",
    "Gate",
    "GateConfig",
    "Mention",
    "Probe",
    "Query",
    "RippleAxis",
    "RippleTest",
]
