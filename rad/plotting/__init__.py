"""Figures and tables from the rows of `rad.results`. Nothing here needs torch."""

from rad.plotting.allocation import allocation_figure
from rad.plotting.benchmark import PROGRAMS, benchmark_figure
from rad.plotting.budgets import curves_by_budget, final_against_memory
from rad.plotting.curves import convergence, four_panels
from rad.plotting.files import save
from rad.plotting.front import front
from rad.plotting.memory import memory_figure
from rad.plotting.pareto import EXACT, pareto_figure
from rad.plotting.partition import partition_figure
from rad.plotting.recurrent import recurrent_figure
from rad.plotting.selection import select, select_overrides
from rad.plotting.style import COLUMN_WIDTH, LABELS, RC, STYLES, byte_text, log_ticks, ordered
from rad.plotting.tables import summary_table

__all__ = [
    "COLUMN_WIDTH",
    "EXACT",
    "LABELS",
    "PROGRAMS",
    "RC",
    "STYLES",
    "allocation_figure",
    "benchmark_figure",
    "byte_text",
    "convergence",
    "curves_by_budget",
    "final_against_memory",
    "four_panels",
    "front",
    "log_ticks",
    "memory_figure",
    "ordered",
    "pareto_figure",
    "partition_figure",
    "recurrent_figure",
    "save",
    "select",
    "select_overrides",
    "summary_table",
]
