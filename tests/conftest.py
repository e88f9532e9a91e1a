"""Where hypothesis is not installed, the tests that do without still run.

At the end stands what the statistical tests of this run are worth.
"""

import contextlib
import logging
import math
import os
from typing import Any

import pytest

# Inductor believes the processor's flags, and does not try each instruction set in a process of its
# own, half a minute before the first program is compiled.
os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "1")

with contextlib.suppress(ImportError):
    from hypothesis import settings

    # Time is no test, and a first example may compile loops.
    settings.register_profile("untimed", deadline=None)
    settings.load_profile("untimed")


class Checks(logging.Handler):
    """Adds up the checks of `tests/unbiased.py`, those of other processes among them."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.powers = 0, list[float]()

    def emit(self, record: Any) -> None:
        self.count += 1
        self.powers += [] if record.power is None else [record.power]

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput["checks"] = (self.count, self.powers)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        count, powers = getattr(node, "workeroutput", {}).get("checks", (0, []))
        self.count, self.powers = self.count + count, self.powers + powers

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        from unbiased import LEVEL, POWER

        if self.count:
            enough = [power for power in self.powers if power >= POWER]
            terminalreporter.write_line(
                f"{self.count} statistical checks: a false alarm in 1 of "
                f"{math.floor(1 / (self.count * LEVEL)):,} runs at most; power against a bias of "
                f"5% at least {min(enough, default=1.0):.4f}, in {len(enough)} checks"
            )


def pytest_configure(config: pytest.Config) -> None:
    checks, logger = Checks(), logging.getLogger("unbiased")
    logger.setLevel(logging.DEBUG)
    logger.addHandler(checks)
    config.pluginmanager.register(checks)
