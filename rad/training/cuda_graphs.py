"""Updates as replays of a CUDA graph.

An update of a small network is hundreds of kernels that run for microseconds each: launching them
takes longer than running them. Captured as a CUDA graph, they are launched by one call.

A replay launches what was launched during the capture: the same kernels on the same memory. So
an update must find on the device whatever changes. Counters of draws, generators, the learning rate
and the step counts of the optimizer are there, and replays draw and count as eager updates do.
What Python does in a model's forward pass (a branch, a count in an int) is done at the capture and
then never again: such a model must not be captured. Nothing can detect that. A model that waits
for the device, or that puts other tensors in the place of its buffers, is detected, and trained
eagerly.

The first updates of a process are eager, on the stream of the capture: they let libraries and
the optimizer allocate what they keep. The capture itself runs nothing, so that nothing has to be
undone. What a replay allocates lies in memory of the graph's own, as long as the run lasts.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

WARM_UP = 3
"""Eager updates before the capture, as torch advises."""

Update = Callable[[], Tensor]
"""Launches one update of a run; returns the loss of its batch, without waiting."""


class CannotCapture(Exception):
    """An update that cannot be replayed; the message says why."""


class Graphs(Protocol):
    """What captures the updates of one run."""

    def can_capture(self, device: torch.device) -> bool:
        """Whether work on that device can be captured at all."""

    def warm_up(self, update: Update, device: torch.device) -> tuple[Tensor, str | None]:
        """Run an update where it will be captured: its loss, and why it cannot be, if so."""

    def capture(self, update: Update, generator: torch.Generator) -> Update:
        """An update that does the same by a replay; nothing is run. It may draw from `generator`.

        Whatever this raises, the next update can be eager.
        """


def eager(update: Update) -> Iterator[Tensor]:
    """The losses of one update after the other, without end."""
    while True:
        yield update()


def updates(
    update: Update,
    model: nn.Module,
    generator: torch.Generator,
    graphs: Graphs,
    tell: Callable[[str], None],
) -> Iterator[Tensor]:
    """As `eager`, but by replays where that is possible.

    Where it is not, `tell` gets the reason, once, and all updates are eager, with the same outcome.
    """
    problem: str | None = f"there is no CUDA graph on the device {generator.device}"
    if graphs.can_capture(generator.device):
        for _ in range(WARM_UP):
            loss, problem = graphs.warm_up(update, generator.device)
            yield loss
    if problem is None:
        try:
            update = _captured(update, model, generator, graphs)
        except Exception as error:  # whatever it was, eager updates have worked so far
            problem = (str(error).splitlines() or [type(error).__name__])[0]
    if problem is not None:
        tell(f"training goes on without a CUDA graph, to the same end: {problem}")
    yield from eager(update)


def _captured(
    update: Update, model: nn.Module, generator: torch.Generator, graphs: Graphs
) -> Update:
    """The update as a replay. Raises CannotCapture for buffers that it does not keep in place."""
    before = [(module, dict(module._buffers)) for module in model.modules()]
    replaced = []
    try:
        replay = graphs.capture(update, generator)
    finally:
        for module, buffers in before:
            for name, tensor in buffers.items():
                if module._buffers[name] is not tensor:
                    replaced.append(f"{type(module).__name__}.{name}")
                    module._buffers[name] = tensor
    if replaced:
        raise CannotCapture(f"{replaced[0]} is replaced in a forward pass, not changed in place")
    return replay


class CudaGraphs:
    """Captures on a stream of its own.

    Other threads and other runs of the process may go on meanwhile: `thread_local` lets CUDA
    refuse unsafe calls of this thread only, and runs side by side take turns in one thread.
    """

    def __init__(self) -> None:
        self._own_stream: torch.cuda.Stream | None = None

    def can_capture(self, device: torch.device) -> bool:
        """Only work on CUDA devices."""
        return device.type == "cuda"

    def warm_up(self, update: Update, device: torch.device) -> tuple[Tensor, str | None]:
        """As in `Graphs`; an update that waits for the device cannot be captured."""
        stream, current = self._stream(device), torch.cuda.current_stream(device)
        stream.wait_stream(current)
        with _noted_waits() as waits, torch.cuda.stream(stream):
            loss = update()
        current.wait_stream(stream)
        return loss, f"an update waits for the device ({waits[0]})" if waits else None

    def capture(self, update: Update, generator: torch.Generator) -> Update:
        """As in `Graphs`; replays run on the stream that is current then."""
        with torch.cuda.device(generator.device):
            graph = torch.cuda.CUDAGraph()
            graph.register_generator_state(generator)
            with capturing(graph, self._stream(generator.device), generator):
                loss = update()

        def replay() -> Tensor:
            graph.replay()
            return loss.clone()

        return replay

    def _stream(self, device: torch.device) -> torch.cuda.Stream:
        if self._own_stream is None:
            self._own_stream = torch.cuda.Stream(device)
        return self._own_stream


@contextmanager
def capturing(
    graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream, *generators: torch.Generator
) -> Iterator[None]:
    """Captures what is launched within; if that fails, what follows runs as if nothing had been.

    A capture that CUDA has called off leaves its stream current, and generators (those given, and
    the default one) that wait for its end.
    """
    current = torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            yield
    except BaseException:
        torch.cuda.set_stream(current)
        for each in (*generators, torch.cuda.default_generators[current.device_index]):
            each.graphsafe_set_state(each.clone_state())
        raise


@contextmanager
def _noted_waits() -> Iterator[list[str]]:
    """Notes where, within the context, the host waits for a CUDA device."""
    before, waits = torch.cuda.get_sync_debug_mode(), list[str]()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            yield waits
    finally:
        torch.cuda.set_sync_debug_mode(before)
        for warning in caught:
            text = str(warning.message)
            if "called a synchronizing CUDA operation" in text:
                waits.append(f"{warning.filename}:{warning.lineno}")
            elif "Synchronization debug mode" not in text:
                warnings.warn_explicit(text, warning.category, warning.filename, warning.lineno)
