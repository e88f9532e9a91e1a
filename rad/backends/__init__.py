"""How a primitive runs: which form of it takes a tensor, and what a compiler sees of it."""

from rad.backends.choice import Keys, host_keys, in_loops, is_readable, use_kernels

__all__ = ["Keys", "host_keys", "in_loops", "is_readable", "use_kernels"]
