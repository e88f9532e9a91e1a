"""Counter-based random numbers: every draw is an integer function of (key, row, slot).

A key is a 0-d int64 tensor. With all arithmetic modulo 2**64,

    mix(z):              z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
                         z = (z ^ (z >> 27)) * 0x94D049BB133111EB
                         z ^ (z >> 31)                        (logical shifts)
    word(key, row, slot) = mix(key + ROW * row + SLOT * slot)
    fold_in(key, i)      = mix(key + FOLD * (i + 1))          (sub-keys)

`mix` is the finaliser of SplitMix64 (Steele, Lea and Flood, 2014, after Stafford),
which makes a good generator of a counter that advances by an odd constant. The three
constants are 2**64 / g, 2**64 / g**2 and 2**64 / g**3, made odd, for the root g of
x**4 = x + 1 (Roberts' generalised golden ratio): counters that differ in row, slot or
sub-key keep well apart. The same integers come out on every device, in any order, and
no generator is touched.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from rad.backends.operators import opaque


def signed(word: int) -> int:
    """A word of 64 bits as a signed integer, as tensors hold it."""
    word %= 1 << 64
    return word - (1 << 64) if word >= 1 << 63 else word


ROW = signed(0xD1B54A32D192ED03)
SLOT = signed(0xABC98388FB8FAC03)
FOLD = signed(0x8CB92BA72F3D8DD7)
WORD_BITS = 64

KEY_BYTES = 8
"""What a key takes that is kept."""

PART_MASK = (1 << 24) - 1
"""The bits of a word that decide below the resolution of a rounding grid
(`rad.sketches.grid.part`)."""

KEPT, READ = 0x6B657074, 0x72656164
"""The sub-keys of the casts to short types (`rad.draws.casts`): of what is kept, and of what is
read from it."""

_MULTIPLIERS = (signed(0xBF58476D1CE4E5B9), signed(0x94D049BB133111EB))
_LOW_HALF = 0xFFFFFFFF


def _mix_(z: Tensor) -> Tensor:
    """`mix`, in place. The masks make arithmetic shifts logical."""
    z ^= (z >> 30).bitwise_and_((1 << 34) - 1)
    z *= _MULTIPLIERS[0]
    z ^= (z >> 27).bitwise_and_((1 << 37) - 1)
    z *= _MULTIPLIERS[1]
    z ^= (z >> 31).bitwise_and_((1 << 33) - 1)
    return z


def mixed(z: int) -> int:
    """`mix` of an integer, modulo 2**64."""
    z %= 1 << 64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % (1 << 64)
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % (1 << 64)
    return z ^ (z >> 31)


def make_key(seed: int, device: torch.device | str | None = None) -> Tensor:
    """The key of an integer seed: int64, shape ()."""
    seed = signed(seed)
    return fold_in(torch.full((), seed, dtype=torch.int64, device=device), 0)


def fold_in(key: Tensor, i: int | Tensor) -> Tensor:
    """The i-th sub-key of a key: int64, shape ().

    `key` may also hold several keys, and `i` be a tensor on their device: the result then has the
    shape to which the two broadcast.
    """
    return _mix_(key + (i + 1) * FOLD) if isinstance(i, Tensor) else _fold_in_integer(key, i)


@opaque()
def _fold_in_integer(key: Tensor, i: int) -> Tensor:
    return _mix_(key + signed((i + 1) * FOLD))


def step_keys(key: Tensor, steps: int, first: int = 0) -> Tensor:
    """`fold_in(key, t)` for t = first..first+steps-1: int64, (steps,)."""
    return fold_in(key, torch.arange(first, first + steps, device=key.device))


def row_keys(keys: Tensor, rows: int) -> Tensor:
    """A key for each of the rows of all steps in one sequence: (steps * rows,).

    The words of row s * rows + r under its key are those of row r under keys[s]: a
    word depends on key + ROW * row alone.
    """
    step = torch.arange(len(keys), device=keys.device)
    return (keys - step * signed(rows * ROW)).repeat_interleave(rows)


def words(key: Tensor, rows: range, slots: int) -> Tensor:
    """`word(key, row, slot)` for the given rows and slots 0..slots-1: int64, (len(rows), slots).

    `key` may also hold one key a row: int64, (len(rows),).
    """
    row = torch.arange(rows.start, rows.stop, dtype=torch.int64, device=key.device)
    slot = torch.arange(slots, dtype=torch.int64, device=key.device)
    return _mix_((row.mul_(ROW) + key)[:, None] + slot.mul_(SLOT))


def check_high(high: int) -> None:
    """Raises ValueError for a bound that `integers` cannot draw below."""
    if not 0 < high < 1 << 31:
        raise ValueError(f"high must lie in 1..2**31-1, got {high}")


def check_count(count: int, high: int) -> None:
    """Raises ValueError for a number of distinct integers that there are not."""
    if not 0 < count <= high:
        raise ValueError(f"cannot draw {count} distinct integers below {high}")


def integers(key: Tensor, rows: range, slots: int, high: int) -> Tensor:
    """Independent draws from 0..high-1, high < 2**31: int64, (len(rows), slots).

    Slot s takes half s % 2 (the low one first) of word s // 2, times `high`, shifted
    right by 32: each value has probability 1/high to within 2**-32.
    """
    check_high(high)
    drawn = words(key, rows, -(-slots // 2))
    halves = torch.stack([drawn & _LOW_HALF, (drawn >> 32).bitwise_and_(_LOW_HALF)], dim=-1)
    return halves.mul_(high).bitwise_right_shift_(32).flatten(1)[:, :slots]


def distinct_integers(key: Tensor, rows: range, count: int, high: int) -> Tensor:
    """For each row, a uniform subset of 0..high-1 of the given size: int64, (len(rows), count).

    The first `count` distinct values of the row's stream of `integers`: by symmetry
    in the values every subset is equally likely. Where more than half is wanted,
    the values left out are drawn so. Memory is O(count) a row; a row holds no order
    that means anything. The stream is cut where the chance of running short is
    below 2**-64.
    """
    check_count(count, high)
    if count == high:
        return torch.arange(high, device=key.device).expand(len(rows), high)
    if 2 * count > high:
        left_out = distinct_integers(key, rows, high - count, high)
        taken = left_out.new_ones(len(rows), high, dtype=torch.bool).scatter_(1, left_out, False)
        return _first_flagged(torch.arange(high, device=key.device), taken, count)
    stream = integers(key, rows, _stream_length(count, high), high)
    ordered, slot = stream.sort(dim=1, stable=True)
    repeated = torch.zeros_like(ordered, dtype=torch.bool)
    repeated[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    first = torch.empty_like(repeated).scatter_(1, slot, ~repeated)
    return _first_flagged(stream, first, count)


def _first_flagged(values: Tensor, flags: Tensor, count: int) -> Tensor:
    """The first `count` values of each row whose flag is set, in order: (rows, count)."""
    rank = flags.cumsum(1).sub_(1)
    place = torch.where(flags & (rank < count), rank, count)
    spare = rank.new_zeros(len(rank), count + 1)
    return spare.scatter_(1, place, values.expand_as(place))[:, :count]


@lru_cache(maxsize=1024)
def _stream_length(count: int, high: int) -> int:
    """Draws after which fewer than `count` of `high` values were seen with chance < 2**-64.

    The waiting time is a sum of independent geometric variables; Chernoff's bound
    over a grid of exponents.
    """
    succeed = [1 - i / high for i in range(count)]
    fail = 1 - succeed[-1]
    if fail == 0:
        return count
    best = math.inf
    for step in range(1, 40):
        theta = -math.log(fail) * step / 40
        grown = math.exp(theta)
        log_moment = sum(math.log(p * grown / (1 - (1 - p) * grown)) for p in succeed)
        best = min(best, (log_moment + 64 * math.log(2)) / theta)
    return math.ceil(best)


def signs(key: Tensor, rows: range, slots: int, dtype: torch.dtype) -> Tensor:
    """Independent signs -1 or +1: (len(rows), slots). Slot s is bit s % 64 of word s // 64."""
    drawn = words(key, rows, -(-slots // WORD_BITS))
    shifts = torch.arange(0, WORD_BITS, 8, device=key.device)
    octets = ((drawn[:, :, None] >> shifts) & 0xFF).flatten(1)[:, : -(-slots // 8)]
    value = torch.arange(256, device=key.device)[:, None]
    table = ((value >> torch.arange(8, device=key.device)) & 1).mul_(2).sub_(1).to(dtype)
    return table[octets].flatten(1)[:, :slots]


def lanes(key: Tensor, count: int, first: int = 0) -> Tensor:
    """Independent draws from 0..2**16-1, from the `first` on: int32, (count,).

    Draw i is lane i % 4 of word i // 4.
    """
    skipped = first % 4
    start = signed(first // 4 * SLOT)
    drawn = words(key + start, range(1), -(-(skipped + count) // 4))[0]
    shifts = torch.arange(0, WORD_BITS, 16, device=key.device)
    lane = ((drawn[:, None] >> shifts) & 0xFFFF).to(torch.int32).flatten()
    return lane[skipped : skipped + count]
