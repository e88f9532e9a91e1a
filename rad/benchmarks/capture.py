"""A step as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable

import torch

from rad.training.cuda_graphs import capturing


def captured(step: Callable[[], object], warmup: int = 3) -> Callable[[], object]:
    """`step` as a CUDA graph: each call replays the kernels that one call of `step` launched.

    `step` runs so many times before it is captured, on a stream of its own.
    Raises RuntimeError where it does what a graph cannot, such as waiting for the device.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(warmup):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with capturing(graph, side):
        step()
    return graph.replay
