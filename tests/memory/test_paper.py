import pytest
import torch
import torch.nn.functional as F

import rad
from rad import models
from rad.errors import UsageError
from rad.memory import parameter_bytes, saved_bytes
from rad.memory.paper import NETWORKS, PRINTED_MB, paper_bytes

CELLS = [(network, keep, mb) for network, row in PRINTED_MB.items() for keep, mb in row.items()]
SHAPES = {"feedforward": (1, 28, 28), "convnet": (3, 32, 32), "irnn": (1, 28, 28)}


def test_printed_reading_gives_17_of_18_cells() -> None:
    differing = [
        cell for cell in CELLS if f"{paper_bytes(*cell[:2]) / 1e6:.2f}" != f"{cell[2]:.2f}"
    ]
    assert differing == [("feedforward", 0.5, 2.21)]
    assert paper_bytes("feedforward", 0.5) == pytest.approx(2.2045e6, abs=100)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("keep", [1.0, 0.5, 0.1, 0.05])
def test_honest_reading_is_what_is_measured(network: str, keep: float) -> None:
    model = models.build(network, SHAPES[network], 10, seed=0)
    sketch = rad.Identity() if keep == 1 else rad.DifferentSample(keep)
    converted = rad.convert(model, sketch)
    x, y = torch.rand(150, *SHAPES[network]), torch.randint(10, (150,))
    measured = parameter_bytes(model) + saved_bytes(lambda: F.cross_entropy(converted(x), y))
    assert measured == pytest.approx(paper_bytes(network, keep, reading="honest"), rel=0.002)


def test_a_smaller_batch_needs_less() -> None:
    full, small = (paper_bytes("convnet", None, batch) for batch in (150, 22))
    weights = 4 * NETWORKS["convnet"].parameters
    assert small - weights == pytest.approx((full - weights) * 22 / 150, abs=1)


def test_unknown_network() -> None:
    with pytest.raises(UsageError, match="feedforward"):
        paper_bytes("resnet", 0.1)
