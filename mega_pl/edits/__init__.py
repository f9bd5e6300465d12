"""What is to be edited, and the bank of fitted edits."""

from mega_pl.edits.bank import BankHandle, EditBank
from mega_pl.edits.change import Change
from mega_pl.edits.conflicts import check_requests
from mega_pl.edits.request import EditCase, EditRequest, Probe, Query, RippleAxis, RippleTest
from mega_pl.edits.routing import NO_EDIT, ContentRouter, Route, RoutedEdits, RouterConfig

__all__ = [
    "NO_EDIT",
    "BankHandle",
    "Change",
    "ContentRouter",
    "EditBank",
    "EditCase",
    "EditRequest",
    "Probe",
    "Query",
    "RippleAxis",
    "RippleTest",
    "Route",
    "RoutedEdits",
    "RouterConfig",
    "check_requests",
]
