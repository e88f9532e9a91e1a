"""One page that shows runs in a browser, offline: curves, what memory buys, a table."""

from rad.plotting.report.page import page
from rad.plotting.report.runs import collect, there

__all__ = ["collect", "page", "there"]
