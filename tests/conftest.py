"""Where hypothesis is not installed, the tests that do without still run."""

import contextlib

with contextlib.suppress(ImportError):
    from hypothesis import settings

    # Time is no test, and a first example may compile loops.
    settings.register_profile("untimed", deadline=None)
    settings.load_profile("untimed")
