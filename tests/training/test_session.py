"""What both loops leave to their session."""

import csv
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD

from rad.errors import Diverged
from rad.results import RunFolder
from rad.training import Settings, session
from rad.training.session import Session


class Rows:
    """A logger that keeps its rows."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def log(self, row: Mapping[str, Any]) -> None:
        self.rows.append(dict(row))

    def figure(self, name: str, file: Path) -> None:
        pass

    def finish(self) -> None:
        pass


class Bar:
    """Stands in for the progress bar."""

    def __init__(self, iterations: int, done: int, device: torch.device, shown: object) -> None:
        self.seen: list[Any] = [(iterations, done)]

    def score(self, name: str, value: float) -> None:
        self.seen.append((name, value))

    def show(self, done: int, loss: float) -> None:
        self.seen.append((done, loss))

    def tell(self, path: Path, text: str) -> None:
        self.seen.append(text)

    def close(self) -> None:
        self.seen.append("closed")


@contextmanager
def opened(path: Path, logger: Rows, **changes: Any) -> Iterator[Session]:
    values: dict[str, Any] = {"iterations": 7, "batch_size": 1, "checkpoint_every": 3}
    settings = Settings(**(values | {"optimizer": "sgd", "learning_rate": 0.5} | changes))
    model = nn.Linear(2, 1)
    folder = RunFolder(path)
    with folder.open("a: 1\n"):
        yield Session(
            model,
            SGD(model.parameters(), lr=0.5),
            torch.Generator(),
            settings,
            folder,
            logger,
            columns=["first", "second"],
            device=torch.device("cpu"),
            remedy="do something else",
        )


def test_a_run_goes_on_where_its_checkpoint_was(tmp_path: Path) -> None:
    first, second = Rows(), Rows()
    with opened(tmp_path, first) as one, one:
        for iteration in one.strides():
            if iteration == 5:
                break  # as if killed
            one.record({"second": float(iteration)})
            one.done(1)
    assert [row["iteration"] for row in first.rows] == [0, 1, 2, 3, 4]
    with opened(tmp_path, second, decay_every=2, decay_factor=0.1) as two, two:
        assert (two.iteration, two.finished) == (3, False)
        assert [row["iteration"] for row in second.rows] == [0, 1, 2]
        for iteration in two.strides():
            two.record({"second": float(iteration)})
            two.done(1)
    assert two.finished
    assert second.rows[:3] == first.rows[:3]
    with (tmp_path / "metrics.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == ["iteration", "seconds", "learning_rate", "first", "second"]
    assert [(row["iteration"], row["first"], row["second"]) for row in rows] == [
        (str(n), "", f"{n}.0") for n in range(7)
    ]
    rates = [float(row["learning_rate"]) for row in rows[3:]]
    assert rates == pytest.approx([0.05, 0.05, 0.005, 0.005])
    result = two.result({"first": 1.0})
    assert (result.finished, result.iterations, result.final) == (True, 7, {"first": 1.0})


def test_a_checkpoint_is_written_where_the_time_is_over(tmp_path: Path) -> None:
    done = []
    while not done or done[-1] < 7:
        with opened(tmp_path, Rows(), time_limit=1e-9) as one, one:
            for _ in one.strides():
                one.done(1)
        done.append(one.iteration)
    assert done == [1, 2, 3, 4, 5, 6, 7]


def test_only_what_is_timed_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 12.5, 100.0, 100.25])
    with opened(tmp_path, Rows()) as one, monkeypatch.context() as patch:
        patch.setattr("rad.training.session.time.perf_counter", lambda: next(clock))
        for _ in range(2):
            with one.timed():
                pass
    assert one.progress.seconds == 2.75


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite(value: float, tmp_path: Path) -> None:
    with opened(tmp_path, Rows()) as one:
        one.check_finite("the loss", 1e300)
        one.done(2)
        with pytest.raises(Diverged, match=f"^the loss is {value} at iteration 2; do something"):
            one.check_finite("the loss", value)
        with pytest.raises(Diverged, match="at iteration 9;"):
            one.check_finite("the loss", value, 9)


def test_the_bar_follows_and_is_closed_whatever_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bars: list[Bar] = []
    monkeypatch.setattr(session, "ProgressBar", lambda *args: bars.append(Bar(*args)) or bars[-1])

    def diverge(run: Session) -> None:
        with run:
            run.done(2)
            run.show(0.25)
            run.tell("this is heard")
            run.check_finite("the loss", math.nan)

    with opened(tmp_path, Rows()) as one:
        one.tell("nobody hears this")
        with pytest.raises(Diverged):
            diverge(one)
    assert [bar.seen for bar in bars] == [[(7, 0), (2, 0.25), "this is heard", "closed"]]
