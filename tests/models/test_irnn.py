"""The IRNN in segments."""

import pytest
import torch

from rad import models
from rad.models.irnn import IRNN, SEGMENT


@pytest.mark.parametrize("steps", [5, SEGMENT, 3 * SEGMENT + 1])
def test_in_segments_it_is_the_same(steps: int) -> None:
    model = models.build("irnn", (steps, 1), 10, seed=0, hidden=7, std=0.3)
    assert isinstance(model, IRNN)
    x = torch.randn(4, steps, 1, generator=torch.Generator().manual_seed(0))
    ran = []

    def run(function: object, *tensors: torch.Tensor) -> torch.Tensor:
        ran.append(len(tensors[0]))
        return function(*tensors)  # type: ignore[operator]

    torch.testing.assert_close(model.segmented(x, run), model(x))
    assert ran == [min(SEGMENT, steps - start) for start in range(0, steps, SEGMENT)]
