"""What is raised for input that cannot be used, and for a training run that diverged."""


class UsageError(ValueError):
    """A configuration, budget, file or shape that cannot be used.

    The message is one line that names the cause and the remedy; the command
    line prints it without a traceback and exits with a status other than 0.
    """


class Diverged(UsageError):
    """Training has come to a loss that is not finite."""


def first_line(error: BaseException) -> str:
    """What a message of one line can tell of another error."""
    return next(iter(str(error).splitlines()), type(error).__name__)
