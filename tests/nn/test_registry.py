"""What the operators' rows say is what the layers have."""

import pytest
from torch import nn

import rad.nn
from rad.nn.registry import OPERATORS, RAD_LAYERS, Operator, operator_of

every_row = pytest.mark.parametrize("row", OPERATORS, ids=lambda row: row.layer.__name__)


@every_row
def test_what_a_layer_asks_for_can_be_set(row: Operator) -> None:
    if row.asks is not None:
        assert isinstance(getattr(row.layer, row.asks), bool | property)
    asking = {"output_kept", "sequence_read"} & set(dir(row.layer))
    assert asking == ({row.asks} if row.asks else set())


@every_row
def test_layers_know_their_row_under_both_names(row: Operator) -> None:
    for kind in (row.torch, row.layer):
        assert operator_of(kind.__new__(kind)) is row


def test_every_layer_that_is_exported_has_a_row() -> None:
    exported = [getattr(rad.nn, name) for name in rad.nn.__all__]
    layers = {e for e in exported if isinstance(e, type) and issubclass(e, nn.Module)}
    assert layers - {rad.nn.Sketching, rad.nn.Sequential, rad.nn.Slices} == RAD_LAYERS
    assert operator_of(nn.Softmin()) is None
