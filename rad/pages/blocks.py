"""What a page says where its numbers come from, and how they are put there.

A table stands between two comments, and a number before one:

    <!-- table: training("fig5b_mnist", columns="variant saved seeds") -->
    ...
    <!-- end -->

    ends at 0.0062<!--= final("fig5b_mnist/reduced_batch/budget=0.1"):.2g -->

A ratio with its interval, `1.03 (0.94 to 1.12)`, stands before `<!--~ interval(...) -->`.
Comments hold calls of the functions in `namespace`; after a number's call, and a colon, the format.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rad.errors import UsageError
from rad.pages.headlines import headlines
from rad.pages.measured import Measured
from rad.pages.reproduction import index
from rad.pages.runs import Runs

TABLE = re.compile(r"(<!-- table: (.*?) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
PHRASE = re.compile(r"(\S+ \(\S+ to [^\s)]+\))(<!--~ (.*?)() -->)")
NUMBER = re.compile(r"([^\s|(*~]+(?: ± [^\s|(*]+)?)(\*{0,2}<!--= (.*?)(?::([^:\"]*))? -->)")
OPENINGS = {TABLE: "<!-- table: ", PHRASE: "<!--~", NUMBER: "<!--="}
"""How the comments of each kind begin."""

AFTER = {str(count): f"after {count:,} iterations" for count in (0, 500, 5000)}

TABLE_1 = {
    "printed_mb": "the paper, printed",
    "paper_mb": "its arithmetic",
    "honest_mb": "by hand, corrected",
    "saved_mb": "**measured**",
}

NETWORKS = {
    "convnet_pointwise": "1 x 1",
    "feedforward_1024": "1024",
    "feedforward_deep": "deep",
    "feedforward_tokens": "tokens",
}


def namespace(root: Path, **more: object) -> Mapping[str, object]:
    """What comments may name, on the results below `root`."""
    runs = Runs(root)
    functions = {
        "index": lambda prefix: index(runs, prefix),
        **runs.functions,
        **headlines(runs),
        **Measured(root).functions,
    }
    return {**functions, "iterations": AFTER, "table1": TABLE_1, "networks": NETWORKS, **more}


@dataclass(frozen=True)
class Page:
    """A document, and the functions that its comments call."""

    file: Path
    functions: Mapping[str, object]

    def made(self) -> str:
        """The text, with its tables and numbers as the results have them.

        Raises:
            UsageError: a comment cannot be read, or calls for results that are not there.
        """
        text = self.file.read_text()
        self._check_read(text)
        text = TABLE.sub(self._table, text)
        return NUMBER.sub(self._number, PHRASE.sub(self._number, text))

    def _check_read(self, text: str) -> None:
        """Raises UsageError for a comment that would be passed over, or reach into the next one."""
        for pattern, opening in OPENINGS.items():
            count = text.count(opening)
            if count != len(pattern.findall(text)):
                raise UsageError(
                    f"{self.file}: of {count} comments {opening}... one cannot be read: let a "
                    "table end at <!-- end -->, and a number stand right before its comment"
                )

    def _table(self, match: re.Match[str]) -> str:
        opening, call, _, end = match.groups()
        return f"{opening}{self._value(call)}\n{end}"

    def _number(self, match: re.Match[str]) -> str:
        _, comment, call, form = match.groups()
        value = self._value(call)
        return (value if isinstance(value, str) else format(value, form or ",")) + comment

    def _value(self, call: str) -> object:
        scope = {"__builtins__": {}, **self.functions}
        try:
            return eval(compile(call.strip(), str(self.file), "eval"), scope)
        except UsageError as error:
            raise UsageError(f"{self.file}: {call}: {error}") from error
        except Exception as error:
            cause = f"{type(error).__name__}: {error}"
            raise UsageError(f"{self.file}: {call}: {cause}; correct the call") from error
