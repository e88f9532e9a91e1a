"""Search for hyperparameters on held-out training examples (paper, section 4 and appendix)."""

from rad.tuning.held_out import hold_out
from rad.tuning.search import Search, Trial
from rad.tuning.space import SAMPLERS, Space

__all__ = ["SAMPLERS", "Search", "Space", "Trial", "hold_out"]
