"""Sketching how far a state is from the target, instead of the state."""

from __future__ import annotations

from dataclasses import dataclass

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
