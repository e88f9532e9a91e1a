"""All cases of all attacks, some at once, until the end or a limit of time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence

from rad.torture.outcomes import LOST, Attack, Case, Outcome, Record

Tell = Callable[[Case, Outcome], None]


class Session:
    """What is left of the cases, for several threads to take from."""

    def __init__(
        self, record: Record, cases: Iterable[Case], seed: int, time_limit: float | None
    ) -> None:
        self._record, self._seed = record, seed
        self._left = [case for case in cases if case not in record.done]
        self._lock = threading.Lock()
        self._end = None if time_limit is None else time.monotonic() + time_limit
        self._failures: list[BaseException] = []

    def run(
        self, here: Sequence[Attack], beside: Sequence[Attack], workers: int, tell: Tell
    ) -> bool:
        """Do the cases, those of `here` in this thread; whether all are done.

        The cases of `beside` start programs, and are done by so many threads.
        """
        threads = [
            threading.Thread(target=self._work, args=(beside, tell), daemon=True)
            for _ in range(workers)
        ]
        for thread in threads:
            thread.start()
        self._work(here, tell)
        for thread in threads:
            thread.join()
        if self._failures:
            raise self._failures[0]
        return not self._left

    def _work(self, attacks: Sequence[Attack], tell: Tell) -> None:
        by_name = {attack.name: attack for attack in attacks}
        try:
            while (case := self._taken(by_name.keys())) is not None:
                outcome = by_name[case.attack].attempt(case.kind, case.draw(self._seed))
                with self._lock:
                    self._record.add(case, outcome)
                    tell(case, outcome)
        except BaseException as error:
            self._failures.append(error)

    def _taken(self, names: Iterable[str]) -> Case | None:
        """The next case of those attacks; None once there is none, or time is over."""
        with self._lock:
            over = self._end is not None and time.monotonic() > self._end
            if over or self._failures:
                return None
            for place, case in enumerate(self._left):
                if case.attack in names:
                    return self._left.pop(place)
        return None


def lost(record: Record) -> list[str]:
    """Each case that was lost, in a line."""
    return [
        f"{case.attack}, {case.kind}, {case.number}: {outcome.note}"
        for case, outcome in record.done.items()
        if outcome.verdict == LOST
    ]
