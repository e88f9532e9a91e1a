"""Projections too large to be drawn whole."""

import pytest
import torch

from rad.memory import peak_bytes
from rad.sketches import DifferentProject, Project, make_key
from rad.sketches.projection import LARGEST


@pytest.mark.parametrize("sketch", [Project(0.1), DifferentProject(0.1)], ids=["same", "different"])
@pytest.mark.parametrize("shape", [(3, 3001), (2, 2, 2400)])
def test_in_blocks_the_matrix_is_the_whole_one(
    sketch: Project | DifferentProject, shape: tuple[int, ...]
) -> None:
    d, key = shape[-1], make_key(2)
    assert d * sketch.kept(d) > LARGEST
    x = torch.randn(shape, dtype=torch.float64)
    rows = x.view(-1, 1, d)
    if isinstance(sketch, Project):
        matrices = sketch.matrix(d, x.dtype, key).expand(len(rows), -1, -1)
    else:
        matrices = sketch.matrices(d, x.dtype, key, range(len(rows)))
    saved = sketch.compress(x, key)
    torch.testing.assert_close(saved[0], (rows @ matrices).view(*shape[:-1], -1))
    x_hat = sketch.decompress(saved, shape, x.dtype, key)
    torch.testing.assert_close(x_hat, (rows @ matrices @ matrices.mT).view(shape))
    last = sketch.decompress(saved, shape, x.dtype, key, range(1, len(rows)))
    torch.testing.assert_close(last, x_hat.view(-1, d)[1:])
    assert peak_bytes(lambda: sketch.compress(x, key)) < x[..., 0].numel() * 8 * d + LARGEST * 8
