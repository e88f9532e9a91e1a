"""Functions of torch that `rad.nn.serving` serves, by what kind of operator they are.

A server is a function of a pass (`rad.nn.calls.Pass`) and of what the function of torch is given;
where it answers NotImplemented, as for arguments that it does not know, torch's function runs.
"""

from rad.nn.functions import activations, attention, exact, losses, norms, products
from rad.nn.functions.registry import SERVERS, kept_by

__all__ = ["SERVERS", "activations", "attention", "exact", "kept_by", "losses", "norms", "products"]
