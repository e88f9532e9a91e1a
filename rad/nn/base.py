"""What layers with draws have in common."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import wraps
from typing import Any, Self

import torch
from torch import Tensor, distributed, nn

from rad import backends
from rad.backends.operators import opaque
from rad.draws.reference import KEY_BYTES
from rad.functional.arguments import product_dtype
from rad.functional.modes import without_modes
from rad.functional.noise_response import NoiseResponse
from rad.nn.shared import Kept, Shared
from rad.sketches import Identity, Sketch, fold_in, make_key

Keep = Callable[[Tensor, Tensor, Sketch, Tensor], tuple[Tensor, ...]]


@opaque()
def _key_and_next_count(key: Tensor, calls: Tensor, replica: int | None) -> tuple[Tensor, Tensor]:
    """The key of a call, and the count of the next.

    One operator, since a compiled program may leave to its backward pass whatever its forward pass
    does not need for its results: a key alone would be folded there, from the next count.
    """
    return fold_in(key if replica is None else fold_in(key, replica), calls), calls + 1


def keeps_now(module: nn.Module) -> bool:
    """Whether a call keeps something for backward: in training mode, with gradients enabled."""
    return module.training and torch.is_grad_enabled()


_CAN_BE_MANY = distributed.is_available()


def _rank() -> int | None:
    """This process's rank among several, None where it is alone."""
    if not (_CAN_BE_MANY and distributed.is_initialized()):
        return None
    return distributed.get_rank() if distributed.get_world_size() > 1 else None


def start_draws(seed: int, place: int, device: torch.device | None) -> tuple[Tensor, Tensor]:
    """The key of (seed, place) and a count of calls that is zero: int64, ()."""
    key = fold_in(make_key(seed, device), place)
    return key, torch.zeros_like(key)


def advance(key: Tensor, calls: Tensor, replica: int | None) -> Tensor:
    """The key of this call; `calls`, the count of those before, is advanced in place.

    `replica` tells the draws of processes apart: None stands for the process's rank.
    """
    replica = _rank() if replica is None else replica
    if backends.in_loops(key):
        from rad.draws import loops

        places = key.data_ptr(), calls.data_ptr()
        word = loops.next_key(*places, replica is not None, replica or 0)
        return torch.full((), word, dtype=torch.int64, device="cpu")
    drawn, after = _key_and_next_count(key, calls, replica)
    calls.copy_(after)
    return drawn


def past_modes(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A layer's forward pass, whose calls of torch go through no `TorchFunctionMode`.

    A layer in a served module (`rad.nn.serving`) makes a hundred of them, none of which is served.
    """

    @wraps(forward)
    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return forward(self, *args, **kwargs)
        with without_modes(args[0] if args else next(iter(kwargs.values()), None)):
            return forward(self, *args, **kwargs)

    return call


TORCHS = "what torch keeps"
"""What a layer says that it `keeps` where it leaves the work to torch's."""

Exact = Callable[[Tensor], int]
"""Bytes of a tensor that is kept as it is: 0 where a layer before keeps it already."""


class Sketching(nn.Module):
    """Mixin of the layers that keep a sketch of their input (activation functions: of their
    derivative), with a fresh key for every call.

    The t-th call draws with `fold_in(key, t)`, `key` being derived from the seed and
    the layer's place. Key and counter are non-persistent buffers, advanced in place
    on the device. Where they have no numbers (the meta device), they start from (seed, place)
    as soon as the layer has memory.
    Among several processes of torch.distributed, each draws for itself, with
    `fold_in(fold_in(key, replica), t)`, so that averaged gradients have independent errors.
    """

    sketch: Sketch
    key: Tensor
    calls: Tensor
    seed: int = 0
    place: int = 0

    on_path: bool = False
    """Whether what the layer keeps makes the gradient by its *input* random."""

    replica: int | None = None
    """Whose draws these are among several processes: None stands for the process's rank.
    Processes that hold the same weights and see the same input, without averaging their
    gradients, must draw alike: give them one number (with tensor parallelism, the rank among
    the data-parallel processes)."""

    shared: Shared | None = None
    """What the layers of the model that this one is in keep of the tensors that they read."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "forward" in vars(cls):
            cls.forward = past_modes(cls.forward)

    def set_sketch(self, sketch: Sketch, seed: int = 0, place: int = 0) -> None:
        """Sketch with `sketch` and the draws of (seed, place) from now on, from the start.

        Key and counter lie where the layer's parameters do, or else where its input does.
        """
        self.sketch, self.seed, self.place = sketch, operator.index(seed), place
        self._start_draws(next((p.device for p in self.parameters()), None))

    def key_and_kept(self, x: Tensor, weight: Tensor, keep: Keep) -> Kept:
        """The key of this call, and what it keeps of x: `keep(x, weight, sketch, key)`.

        Another layer's where one of the same model keeps x in the same way already. Not in a
        compiled program.
        """

        sketch, shared = self.sketch, self.shared
        if (
            shared is None
            or isinstance(sketch, Identity)
            or not weight.requires_grad
            or torch.compiler.is_compiling()
            or x.is_inference()
        ):
            key = self.draw_key()
            return key, keep(x, weight, sketch, key)
        manner = (keep, weight.dim(), sketch, product_dtype(x))
        if (taken := shared.taken(x, self, manner)) is not None:
            return taken
        key = self.next_key()
        kept = keep(x, weight, sketch, key)
        shared.give(x, self, manner, key, kept)
        return key, kept

    def next_key(self) -> Tensor:
        """The key of this call; advances the counter."""
        buffers = self._buffers  # what self.key finds, without its search
        key, calls = buffers["key"], buffers["calls"]
        assert key is not None
        assert calls is not None
        if key.is_meta:
            self.place_draws(next((p.device for p in self.parameters()), key.device))
            key, calls = self.key, self.calls
        return advance(key, calls, self.replica)

    def place_draws(self, device: torch.device) -> None:
        """Move key and counter there; where they have no numbers, start them."""
        if self.key.device == device:
            return
        if self.key.is_meta:
            self._start_draws(device)
        else:
            self.key, self.calls = self.key.to(device), self.calls.to(device)

    def _start_draws(self, device: torch.device | None) -> None:
        key, calls = start_draws(self.seed, self.place, device)
        self.register_buffer("key", key, persistent=False)
        self.register_buffer("calls", calls, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """As in torch, but that key and counter keep their numbers whatever `fn` makes of them."""
        key, calls = self.key, self.calls
        super()._apply(fn, recurse)
        if self.key is not key:
            device = self.key.device
            self.key, self.calls = key, calls
            self.place_draws(device)
        return self

    def _load_from_state_dict(self, *arguments: Any, **options: Any) -> None:
        super()._load_from_state_dict(*arguments, **options)
        if self.key.is_meta:  # parameters may have been assigned
            self.place_draws(next((p.device for p in self.parameters()), self.key.device))

    @property
    def keeps(self) -> str:
        """What is kept for backward, in words."""
        return str(self.sketch)

    def kept_of_input(self, x: Tensor, rows: tuple[int, int], output: Tensor, exact: Exact) -> int:
        """`kept_bytes` of a layer with one weight, whose sketch acts on those rows of x."""
        weight = self.weight
        assert isinstance(weight, Tensor)
        if not weight.requires_grad:
            return KEY_BYTES
        if isinstance(self.sketch, Identity) and x.dtype == output.dtype:
            return KEY_BYTES + exact(x)
        return KEY_BYTES + self.sketch.nbytes(rows, output.dtype)

    def weight_grad_variance(self, x: Tensor, grad_output: Tensor, sketch: Sketch) -> Tensor:
        """E |dW_hat - dW|^2 of a call with this input, in closed form: float64, shape ().

        Raises TypeError for a layer or a sketch without a closed form.
        """
        variance = self.noise_response(x, grad_output).to_sketch(sketch)
        return torch.tensor(variance, dtype=torch.float64, device=x.device)

    def kept_bytes(self, x: Tensor, output: Any, exact: Exact) -> int:
        """Bytes that the call `output = self(x)` in training keeps for backward.

        Parameters excluded; `rad.audit` compares this prediction with what is measured. `exact`
        gives the bytes of a tensor that is kept as it is. Raises TypeError for a layer that does
        not say.
        """
        raise TypeError(f"no account of what {type(self).__name__} keeps")

    def noise_response(self, x: Tensor, grad_output: Tensor) -> NoiseResponse:
        """How the weight's gradient of a call with this input answers noise in it.

        Raises TypeError for a layer without a closed form.
        """
        raise TypeError(f"no closed-form weight gradient variance for {type(self).__name__}")

    def draw_key(self) -> Tensor:
        """The key of this call; `Identity` draws nothing and counts no calls."""
        return self.key if isinstance(self.sketch, Identity) else self.next_key()

    def sketches_now(self) -> bool:
        """Whether a call would sketch: in training mode, with gradients enabled."""
        return keeps_now(self)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, sketch={self.sketch}"
