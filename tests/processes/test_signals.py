"""A signal between any two lines ends a program as a signal, whatever a library makes of it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from rad.errors import UsageError
from rad.processes.signals import ENDING, Stopped, stopped_first, stopping
from rad.processes.workers import Worker

Around = Callable[[], AbstractContextManager[None]]


class Unfit:
    """A library's object: `finally` meets what a signal has left half done."""

    def work(self, number: int) -> None:
        try:
            os.kill(os.getpid(), number)
            self.file = 1
        finally:
            del self.file


@pytest.fixture(autouse=True)
def _interruptible() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in ENDING}
    for number in ENDING:
        signal.signal(number, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", ENDING)
def test_an_error_in_the_place_of_a_signal_does_not_hide_it(number: int) -> None:
    with pytest.raises(Stopped) as stopped, stopping():
        Unfit().work(number)
    assert stopped.value.number == number


def test_before_the_program_ends_too(capsys: pytest.CaptureFixture[str]) -> None:
    def refusing() -> None:
        try:
            with stopped_first():
                Unfit().work(signal.SIGINT)
        except AttributeError:
            print("refused")

    with pytest.raises(Stopped), stopping():
        refusing()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("around", [stopping, stopped_first])
def test_without_a_signal_errors_are_themselves(around: Around) -> None:
    with pytest.raises(ZeroDivisionError), stopping(), around():
        _ = 1 / 0


def save_to_a_full_disk() -> None:
    try:
        os.kill(os.getpid(), signal.SIGINT)
    finally:
        raise UsageError("the disk is full")


def test_what_a_signal_could_not_save_is_told() -> None:
    with pytest.raises(UsageError, match="full"), stopping():
        save_to_a_full_disk()


def test_a_worker_gives_its_job_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Worker, "_watch", lambda self: None)
    worker = Worker(os.getppid(), tmp_path)
    with pytest.raises(Stopped), worker.job():
        Unfit().work(signal.SIGTERM)
    with pytest.raises(Stopped), worker.job():
        pytest.fail("it has been asked to stop")
