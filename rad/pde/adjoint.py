"""What is kept of a simulation's states for its adjoint."""

from __future__ import annotations

from dataclasses import dataclass

from rad.errors import UsageError
from rad.sketches import Sketch


@dataclass(frozen=True)
class Residual:
    """An adjoint that keeps a sketch of phi_t - target_t for each state.

    The target is known at every step: phi_hat_t = target_t + r_hat_t, a control variate. With
    E[r_hat_t] = phi_t - target_t, phi_hat_t is as unbiased as a sketch of phi_t itself; its noise
    is that of the sketch on phi_t - target_t, which is small where the control is good. Bytes are
    those of `sketch`; reading takes one pass over all points of each step for the target's part.
    """

    sketch: Sketch


@dataclass(frozen=True)
class Checkpointing:
    """The exact adjoint from at most `snapshots` stored states; the others are recomputed.

    They stay until the backward pass ends, which stores at most as many again, or one.
    Raises UsageError unless `snapshots` is a whole number of at least 0.
    """

    snapshots: int

    def __post_init__(self) -> None:
        if type(self.snapshots) is not int or self.snapshots < 0:
            raise UsageError(f"snapshots is {self.snapshots!r}; give a whole number of at least 0")


Adjoint = Sketch | Residual | Checkpointing
"""What is kept for the adjoint: a sketch of every state or residual, or some states."""
