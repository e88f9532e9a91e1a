"""What is raised for input that cannot be used, and for a training run that diverged."""

import re
from collections.abc import Sequence

_NO_MEMORY = re.compile("can't allocate memory|out of memory", re.IGNORECASE)


class UsageError(ValueError):
    """A configuration, budget, file or shape that cannot be used.

    The message is one line that names the cause and the remedy; the command
    line prints it without a traceback and exits with a status other than 0.
    """


class Diverged(UsageError):
    """Training has come to a loss that is not finite."""


class ReportedElsewhere(UsageError):
    """What another process of the same run tells the user."""


class Several(UsageError):
    """Some errors, each of its own cause: `errors`."""

    def __init__(self, errors: Sequence[UsageError]) -> None:
        super().__init__("; ".join(map(str, errors)))
        self.errors = list(errors)


def first_line(error: BaseException) -> str:
    """What a message of one line can tell of another error."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def out_of_memory(error: Exception) -> UsageError:
    """What to say of an error for lack of memory; any other is raised again."""
    if isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)):
        cause = first_line(error)[:200]
        return UsageError(f"out of memory ({cause}): choose smaller sizes, batches or budgets")
    raise error
