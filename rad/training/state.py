"""How far a run has come."""

from dataclasses import dataclass, field

Row = dict[str, int | float | None]


@dataclass
class Progress:
    """Updates done, seconds spent on them (evaluation excluded), rows of metrics.csv so far."""

    iteration: int = 0
    seconds: float = 0.0
    rows: list[Row] = field(default_factory=list)
