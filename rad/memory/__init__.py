"""Memory: what is measured, and what a budget buys."""

from rad.memory.budget import parse_budget
from rad.memory.measure import parameter_bytes, peak_bytes, saved_bytes

__all__ = ["parameter_bytes", "parse_budget", "peak_bytes", "saved_bytes"]
