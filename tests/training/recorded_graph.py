"""A CUDA graph on the CPU: operators are recorded at the capture, and run again by a replay.

As with CUDA, the capture leaves no trace, Python code of the update does not run in a replay, and
operators that wait for the device cannot be captured.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rad import backends

aten = torch.ops.aten

# What they return, or its shape, must be known on the host; `lift_fresh` makes a tensor of numbers
# on the host, which would have to be copied to the device.
WAITS = {
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.lift_fresh.default,
    aten.masked_select.default,
    aten.nonzero.default,
    aten.repeat_interleave.Tensor,
    aten._unique2.default,
    aten.unique_dim.default,
}


def no_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw and round as on a device, where compiled loops cannot read."""
    monkeypatch.setattr(backends, "in_loops", lambda x: False)


class Recording(TorchDispatchMode):
    """Notes operators as they run; can take back what they did, and run them again."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Tensor]]] = []
        self.before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        masks = func is aten.index.Tensor or func is aten.index_put_.default
        if func in WAITS or (masks and any(m is not None and _is_mask(m) for m in args[1])):
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        if func is aten.native_batch_norm.default:  # its schema does not tell
            self._keep(args[3:5])
        for place, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self._keep(args[place] if place < len(args) else kwargs.get(argument.name))
        result = func(*args, **kwargs)
        self.launches.append((func, args, kwargs, _tensors(result)))
        return result

    def _keep(self, written: Any) -> None:
        for tensor in _tensors(written):
            storage = tensor.untyped_storage()
            self.before.setdefault(storage.data_ptr(), (storage, storage.clone()))

    def undo(self) -> None:
        """Bring all memory that was written to its state before the recording."""
        for storage, content in self.before.values():
            storage.copy_(content)

    def replay(self) -> None:
        """Run the operators again on the same memory."""
        with torch.no_grad():
            for func, args, kwargs, results in self.launches:
                again = _tensors(func(*args, **kwargs))
                for there, new in zip(results, again, strict=True):
                    if there.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
                        there.copy_(new)


class RecordedGraphs:
    """Stands in for `rad.training.cuda_graphs.CudaGraphs`."""

    def __init__(self) -> None:
        self.captures = self.replays = self.eager = 0

    def can_capture(self, device: torch.device) -> bool:
        return True

    def warm_up(
        self, update: Callable[[], Tensor], device: torch.device
    ) -> tuple[Tensor, str | None]:
        self.eager += 1
        return update(), None

    def capture(
        self, update: Callable[[], Tensor], generator: torch.Generator
    ) -> Callable[[], Tensor]:
        self.captures += 1
        drawn, globally, recording = generator.get_state(), torch.get_rng_state(), Recording()
        try:
            with recording:
                loss = update()
        finally:
            recording.undo()
            generator.set_state(drawn)
            torch.set_rng_state(globally)

        def replay() -> Tensor:
            self.replays += 1
            recording.replay()
            return loss.clone()

        return replay


def _is_mask(index: Tensor) -> bool:
    return index.dtype in (torch.bool, torch.uint8)


def _tensors(nest: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(nest) if isinstance(leaf, Tensor)]
