"""Several runs in one program.

A small network leaves most of a GPU idle. Here each run has a CUDA stream of its own, and launches
its next stride of updates before the stride of another is waited for, so that kernels of different
runs overlap. On the CPU the runs take turns.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch

from rad.errors import UsageError
from rad.training.loop import Strides
from rad.training.session import TrainResult


def side_by_side(
    runs: Sequence[Strides], device: torch.device
) -> Iterator[tuple[int, TrainResult | UsageError]]:
    """Advance all `runs` (of `rad.training.strides`) in turn; yield (index, outcome) at each end.

    Where one diverges, or cannot use its files, the others go on. The outcome is that of the run
    alone, provided that no model draws from torch's global generators. Any other error ends them
    all.
    """
    contexts = [_stream(device) for _ in runs]
    active = dict(enumerate(runs))
    try:
        while active:
            for index, run in list(active.items()):
                outcome = _stride(run, contexts[index])
                if outcome is not None:
                    del active[index]
                    yield index, outcome
    finally:
        for run in active.values():
            run.close()


def _stride(
    run: Strides, context: AbstractContextManager[object]
) -> TrainResult | UsageError | None:
    """One stride of a run; its outcome at the end."""
    with context:
        try:
            next(run)
        except StopIteration as end:
            result: TrainResult = end.value
            return result
        except UsageError as error:
            return error
    return None


def _stream(device: torch.device) -> AbstractContextManager[object]:
    """A context, to be entered again and again, in which kernels go to a stream of its own."""
    if device.type != "cuda":
        return nullcontext()
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    return torch.cuda.stream(stream)
