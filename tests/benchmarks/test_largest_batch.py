"""The search for the largest batch, on tiny networks."""

import pytest
import torch

from rad.benchmarks import largest_batch
from rad.benchmarks.networks import Network
from rad.benchmarks.programs import programs

SHAPE = (3, 8, 8)
CPU = torch.device("cpu")


def test_a_batch_for_which_memory_runs_out_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    (program,) = programs("convnet", 0.1, 4, CPU, names=("torch",), shape=SHAPE).values()

    def measured(step: object) -> int:
        size = step.__self__.batch_size  # type: ignore[attr-defined]
        if size > 21:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 1000 * size

    monkeypatch.setattr(largest_batch, "peak_bytes", measured)
    peaks: dict[int, int | None] = {}
    network = Network("convnet", SHAPE)
    found = largest_batch.largest_within(
        program, lambda count: network.batch(count, CPU), 10**9, 2, peaks
    )
    assert found == 20
    assert peaks[20] == 20_000
    assert peaks[22] is None
    assert max(peaks) == 32
