"""A tensor's numbers in compiled loops, from their address.

An array costs a call some two microseconds, most of them to make it of a tensor; an address costs
a tenth of that, which is what counts for layers of a few thousand numbers. Whoever passes an
address answers for it: the tensor is contiguous and alive during the call, and has so many numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, njit, types
from numba.extending import intrinsic


@intrinsic
def _pointer(typing: Any, address: Any, like: Any) -> Any:
    """A pointer to numbers of the type of `like`."""

    def cast(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(like)(types.intp, like), cast


@njit(inline="always")
def numbers_at(address: int, count: int, like: Any) -> np.ndarray:
    """The `count` numbers of the type of `like` (a numpy scalar) at an address, as an array."""
    return carray(_pointer(address, like), (count,))  # type: ignore[call-arg]
