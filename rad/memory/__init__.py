"""Memory: saved and peak bytes as measured, the paper's count, and the grammar of a budget.

It measures any torch program and imports no sketch; what a budget buys is `rad.planning`'s.
"""

from rad.memory.budget import parse_budget
from rad.memory.measure import parameter_bytes, peak_bytes, saved_bytes

__all__ = ["parameter_bytes", "parse_budget", "peak_bytes", "saved_bytes"]
