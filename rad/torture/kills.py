"""Signals at random moments: the same command, given again, ends as the unbroken run."""

from __future__ import annotations

import random
import signal
from pathlib import Path

from rad.torture.outcomes import LOST, SURVIVED, Outcome
from rad.torture.subjects import SUBJECTS, Stage

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
MOST = 3
"""Kills of one run before it is left to end."""


class Kills:
    """Each case kills one run once to three times."""

    name = "kill"

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self._subjects = {subject.name: subject for subject in SUBJECTS}
        self.kinds = tuple(self._subjects)

    def attempt(self, kind: str, draw: random.Random) -> Outcome:
        """Kill a run, at moments that the time of an unbroken one spans, and let it end."""
        subject = self._subjects[kind]
        _, seconds = self.stage.unbroken(subject)
        with self.stage.folder() as name:
            folder, struck = Path(name), []
            for _ in range(1 if subject.fresh else draw.randint(1, MOST)):
                number, after = draw.choice(SIGNALS), draw.uniform(0, seconds)
                group = [
                    self.stage.program(subject, folder).start() for _ in range(subject.together)
                ]
                hit = group[0].strike(number, after)
                ended = [running.wait() for running in group]
                if subject.fresh:
                    group[0].settle()
                struck += [f"{number.name} after {after:.2f} s"] if hit else []
                expected = (0, -number, 128 + number) if hit else (0,)
                own = not subject.launched  # torchrun ends in its own way
                if own and (ended[0].status not in expected or "Traceback" in ended[0].err):
                    return Outcome(LOST, f"{', '.join(struck)}: {ended[0].words}")
                for other in ended[1:]:
                    if other.status != 0 or "Traceback" in other.err:
                        return Outcome(LOST, f"{', '.join(struck)}, beside it: {other.words}")
            last = self.stage.program(subject, folder).run()
            wrong = self.stage.difference(subject, folder, last)
            note = ", ".join(struck) or "it had ended before"
            return Outcome(LOST, f"{note}: {wrong}") if wrong else Outcome(SURVIVED, note)
