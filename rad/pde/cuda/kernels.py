"""The loops over the steps as Triton kernels: a program runs all steps of a simulation.

A program keeps its state in two frames of points x points values, boundary included, in
global memory that stays in cache: a step reads the one and writes the other, and a barrier
separates steps. Samples are drawn with replacement, as `rad.draws.reference` does, slot by
slot. The same kernels run on the CPU under Triton's interpreter (TRITON_INTERPRET=1).
"""

from __future__ import annotations

import triton
import triton.language as tl

from rad.draws.kernels import fold_in, integer

PI = tl.constexpr(3.141592653589793)


@triton.jit
def _draw(key, step, slots, high):  # type: ignore[no-untyped-def]
    """`integers(fold_in(key, step), range(1), ..., high)` at those slots: int32."""
    return integer(fold_in(key, step), tl.zeros_like(step), slots, high)


@triton.jit
def _mode(number, angle):  # type: ignore[no-untyped-def]
    """That mode of an angle: 1, and sines and cosines of its multiples, in float64."""
    multiple = angle * ((number + 1) // 2).to(tl.float64)
    return tl.where(number % 2 == 1, tl.sin(multiple), tl.cos(multiple))


@triton.jit
def _target(initial, swing, time, at, mask):  # type: ignore[no-untyped-def]
    """The target at a time, float64 (1,), at places of a frame."""
    base = tl.load(initial + at, mask=mask, other=0)
    sine = tl.sum(tl.sin(PI * time)).to(base.dtype)
    return base + sine * tl.load(swing + at, mask=mask, other=0)


@triton.jit
def _euler(  # type: ignore[no-untyped-def]
    frame,
    coefficients,
    space,
    time,
    rate,
    dt,
    at,
    inside,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
    S: tl.constexpr,
    Q: tl.constexpr,
):
    """One step from a frame, which is its own transpose: (TILE, TILE)."""
    rows = tl.arange(0, TILE)
    control = tl.zeros([TILE], tl.float64)
    for q in tl.static_range(Q):
        mode = tl.sum(_mode(tl.full([1], q, tl.int32), PI * time))
        for m in tl.static_range(S):
            control += tl.load(coefficients + m * Q + q) * mode * tl.load(space + m * TILE + rows)
    here = tl.load(frame + at, mask=inside, other=0)
    around = tl.load(frame + at - WIDTH, mask=inside, other=0)
    around += tl.load(frame + at + WIDTH, mask=inside, other=0)
    around += tl.load(frame + at - 1, mask=inside, other=0)
    around += tl.load(frame + at + 1, mask=inside, other=0)
    diagonal = (1 - 4 * rate + dt * control).to(here.dtype)
    return diagonal[:, None] * here + rate.to(here.dtype) * around


@triton.jit
def _places(key, step, INNER: tl.constexpr, SLOTS: tl.constexpr):  # type: ignore[no-untyped-def]
    """The points drawn for a state: their rows among the interior ones, and places in a frame."""
    points = _draw(key, step, tl.arange(0, SLOTS), INNER * INNER)
    rows = points // INNER
    return rows, (rows + 1) * (INNER + 2) + points % INNER + 1


@triton.jit
def _keep(  # type: ignore[no-untyped-def]
    frame,
    kept,
    key,
    step,
    k,
    INNER: tl.constexpr,
    TILE: tl.constexpr,
    SLOTS: tl.constexpr,
    EXACT: tl.constexpr,
):
    """Keep the state of a frame, or a sample of it."""
    if EXACT:
        i = tl.arange(0, TILE)
        inside = (i < INNER)[:, None] & (i < INNER)[None, :]
        values = tl.load(frame + (i[:, None] + 1) * (INNER + 2) + i[None, :] + 1, mask=inside)
        place = tl.sum(step) * INNER * INNER + i[:, None] * INNER + i[None, :]
        tl.store(kept + place, values, mask=inside)
    else:
        slots = tl.arange(0, SLOTS)
        _, places = _places(key, step, INNER, SLOTS)
        values = tl.load(frame + places, mask=slots < k)
        tl.store(kept + step * k + slots, values, mask=slots < k)


@triton.jit
def forward_kernel(  # type: ignore[no-untyped-def]
    coefficients,
    keys,
    counts,
    offsets,
    kept,
    losses,
    frames,
    initial,
    swing,
    space,
    numbers,
    STEPS: tl.constexpr,
    INNER: tl.constexpr,
    TILE: tl.constexpr,
    SLOTS: tl.constexpr,
    S: tl.constexpr,
    Q: tl.constexpr,
    EXACT: tl.constexpr,
    KEEPS: tl.constexpr,
):
    """The loss of each simulation; `kept` + offset takes what it keeps of states 0..steps.

    coefficients (B, S, Q) and numbers (rate, dt, loss scale) float64; keys and offsets (B,)
    int64; counts (B,) int64, samples per state; frames (B, 2, points, points) zeros;
    initial and swing (points, points); space (S, TILE) float64.
    """
    WIDTH: tl.constexpr = INNER + 2
    b = tl.program_id(0)
    coefficients += b * S * Q
    frames += b * 2 * WIDTH * WIDTH
    kept += tl.load(offsets + b)
    key, k = tl.load(keys + b).to(tl.uint64, bitcast=True), tl.load(counts + b)
    rate, dt, scale = tl.load(numbers), tl.load(numbers + 1), tl.load(numbers + 2)
    i = tl.arange(0, TILE)
    inside = (i < INNER)[:, None] & (i < INNER)[None, :]
    at = (i[:, None] + 1) * WIDTH + i[None, :] + 1
    tl.store(frames + at, tl.load(initial + at, mask=inside), mask=inside)
    tl.debug_barrier()
    loss = tl.zeros([TILE, TILE], tl.float64)
    for t in range(STEPS):
        step = tl.full([1], 0, tl.int64) + t
        here, there = frames + t % 2 * WIDTH * WIDTH, frames + (t + 1) % 2 * WIDTH * WIDTH
        if KEEPS:
            _keep(here, kept, key, step, k, INNER, TILE, SLOTS, EXACT)
        time = step.to(tl.float64) * dt
        new = _euler(here, coefficients, space, time, rate, dt, at, inside, WIDTH, TILE, S, Q)
        tl.store(there + at, new, mask=inside)
        after = (step + 1).to(tl.float64) * dt
        off = tl.where(inside, new - _target(initial, swing, after, at, inside), 0)
        loss += (off * off).to(tl.float64)
        tl.debug_barrier()
    if KEEPS:
        last = tl.full([1], 0, tl.int64) + STEPS
        _keep(frames + STEPS % 2 * WIDTH * WIDTH, kept, key, last, k, INNER, TILE, SLOTS, EXACT)
    tl.store(losses + b, tl.sum(loss) * scale)


@triton.jit
def _add_loss_gradient(  # type: ignore[no-untyped-def]
    frame,
    kept,
    key,
    step,
    k,
    initial,
    swing,
    dt,
    scale,
    INNER: tl.constexpr,
    TILE: tl.constexpr,
    SLOTS: tl.constexpr,
    EXACT: tl.constexpr,
):
    """Add the derivative of the loss of a state to its adjoint's frame.

    Slots that drew one point add the same number there, so that their order does not matter.
    """
    time = step.to(tl.float64) * dt
    if EXACT:
        i = tl.arange(0, TILE)
        inside = (i < INNER)[:, None] & (i < INNER)[None, :]
        at = (i[:, None] + 1) * (INNER + 2) + i[None, :] + 1
        place = tl.sum(step) * INNER * INNER + i[:, None] * INNER + i[None, :]
        off = tl.load(kept + place, mask=inside, other=0)
        off -= _target(initial, swing, time, at, inside)
        before = tl.load(frame + at, mask=inside)
        tl.store(frame + at, before + (2 * scale).to(off.dtype) * off, mask=inside)
    else:
        slots = tl.arange(0, SLOTS)
        _, places = _places(key, step, INNER, SLOTS)
        off = tl.load(kept + step * k + slots, mask=slots < k, other=0)
        off -= _target(initial, swing, time, places, slots < k)
        weight = 2 * scale * INNER * INNER / k.to(tl.float64)
        tl.atomic_add(frame + places, weight.to(off.dtype) * off, mask=slots < k)


@triton.jit
def backward_kernel(  # type: ignore[no-untyped-def]
    coefficients,
    keys,
    counts,
    offsets,
    kept,
    gradients,
    frames,
    initial,
    swing,
    space,
    numbers,
    STEPS: tl.constexpr,
    INNER: tl.constexpr,
    TILE: tl.constexpr,
    SLOTS: tl.constexpr,
    S: tl.constexpr,
    Q: tl.constexpr,
    EXACT: tl.constexpr,
    MODES: tl.constexpr,
):
    """gradients (B, S, Q) float64: dL/d coefficients; the rest is as in `forward_kernel`."""
    WIDTH: tl.constexpr = INNER + 2
    SIZE: tl.constexpr = WIDTH * WIDTH
    b = tl.program_id(0)
    coefficients += b * S * Q
    frames += b * 2 * SIZE
    kept += tl.load(offsets + b)
    key, k = tl.load(keys + b).to(tl.uint64, bitcast=True), tl.load(counts + b)
    rate, dt, scale = tl.load(numbers), tl.load(numbers + 1), tl.load(numbers + 2)
    i, slots, pair = tl.arange(0, TILE), tl.arange(0, SLOTS), tl.arange(0, MODES)
    inside = (i < INNER)[:, None] & (i < INNER)[None, :]
    at = (i[:, None] + 1) * WIDTH + i[None, :] + 1
    lanes: tl.constexpr = TILE if EXACT else SLOTS
    total = tl.zeros([lanes, MODES], tl.float64)
    last = tl.full([1], 0, tl.int64) + STEPS
    _add_loss_gradient(
        frames + STEPS % 2 * SIZE, kept, key, last, k, initial, swing, dt, scale,
        INNER, TILE, SLOTS, EXACT,
    )  # fmt: skip
    tl.debug_barrier()
    for done in range(STEPS):
        t = STEPS - 1 - done
        step = tl.full([1], 0, tl.int64) + t
        time = step.to(tl.float64) * dt
        here, there = frames + (t + 1) % 2 * SIZE, frames + t % 2 * SIZE
        if EXACT:
            place = tl.sum(step) * INNER * INNER + i[:, None] * INNER + i[None, :]
            values = tl.load(kept + place, mask=inside, other=0)
            products = tl.sum(values * tl.load(here + at, mask=inside, other=0), axis=1)
            rows = i
        else:
            rows, places = _places(key, step, INNER, SLOTS)
            values = tl.load(kept + step * k + slots, mask=slots < k, other=0)
            products = values * tl.load(here + places, mask=slots < k, other=0)
        of_row = tl.load(
            space + (pair // Q)[None, :] * TILE + rows[:, None],
            mask=(pair < S * Q)[None, :],
            other=0,
        )
        total += products.to(tl.float64)[:, None] * of_row * _mode(pair % Q, PI * time)[None, :]
        new = _euler(here, coefficients, space, time, rate, dt, at, inside, WIDTH, TILE, S, Q)
        tl.store(there + at, new, mask=inside)
        tl.debug_barrier()
        if t > 0:
            _add_loss_gradient(
                there, kept, key, step, k, initial, swing, dt, scale, INNER, TILE, SLOTS, EXACT
            )
        tl.debug_barrier()
    weight = dt
    if not EXACT:
        weight = dt * INNER * INNER / k.to(tl.float64)
    gradient = tl.sum(total, axis=0) * weight
    tl.store(gradients + b * S * Q + pair, gradient, mask=pair < S * Q)
