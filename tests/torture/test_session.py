"""Cases are done once each, whatever stops a run of them, and each verdict can come out."""

import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rad.errors import UsageError
from rad.results import write_table
from rad.torture import damage, programs
from rad.torture.damage import Damage, Target
from rad.torture.kills import Kills
from rad.torture.outcomes import LOST, REFUSED, SURVIVED, Case, Outcome, Record, cases, table
from rad.torture.programs import Ended, Program, Running
from rad.torture.session import Session, lost
from rad.torture.subjects import SUBJECTS, Rows, Stage


class Coin:
    """An attack that remembers what it was asked for."""

    kinds = ("heads", "tails")

    def __init__(self, name: str) -> None:
        self.name = name
        self.tried: list[float] = []

    def attempt(self, kind: str, draw: random.Random) -> Outcome:
        self.tried.append(draw.random())
        return Outcome(SURVIVED if kind == "heads" else LOST, f"{self.name} fell on {kind}")


def done(file: Path, attacks: list[Coin], count: int, limit: float | None = None) -> Record:
    record = Record(file, {"seed": 3})
    wanted = [case for attack in attacks for case in cases(attack, count)]
    Session(record, wanted, 3, limit).run(attacks[:1], attacks[1:], 2, lambda case, outcome: None)
    return record


def test_a_run_of_cases_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    file, attacks = tmp_path / "cases.jsonl", [Coin("a"), Coin("b"), Coin("c")]
    assert not done(file, attacks, 5, limit=1e-9).done
    assert len(done(file, attacks, 2).done) == 6
    record = done(file, attacks, 5)
    assert all(len(attack.tried) == len(set(attack.tried)) == 5 for attack in attacks)
    found = table(record.done.items())
    assert found[found["attack"] == "a"].to_dict("records") == [
        {"attack": "a", "kind": "heads", "tried": 3, "survived": 3, "refused": 0, "lost": 0},
        {"attack": "a", "kind": "tails", "tried": 2, "survived": 0, "refused": 0, "lost": 2},
    ]
    assert "c, tails, 1: c fell on tails" in lost(record)
    with pytest.raises(UsageError, match="of other code or another seed"):
        Record(file, {"seed": 4})


@pytest.mark.parametrize("kept", [-5, 12])
def test_a_line_that_was_cut_off_is_done_again(kept: int, tmp_path: Path) -> None:
    file = tmp_path / "cases.jsonl"
    done(file, [Coin("a")], 4)
    whole = file.read_text()
    file.write_text(whole[:kept])
    again = Coin("a")
    assert len(done(file, [again], 4).done) == 4
    assert len(again.tried) == (1 if kept < 0 else 4)
    assert sorted(file.read_text().splitlines()) == sorted(whole.splitlines())


@pytest.mark.parametrize(
    "line",
    ["{", "[]", "3", '{"verdict": "lost"}', '{"attack": "coin", "verdict": "won", "note": ""}'],
)
def test_a_damaged_line_is_named(line: str, tmp_path: Path) -> None:
    file = tmp_path / "cases.jsonl"
    done(file, [Coin("a")], 4)
    head, first, *rest = file.read_text().splitlines()
    file.write_text("\n".join([head, first, line, *rest, ""]))
    before = file.read_bytes()
    with pytest.raises(UsageError, match=r"line 3 of .*cases.jsonl is damaged .*delete the file"):
        Record(file, {"seed": 3})
    assert file.read_bytes() == before


def test_a_broken_attack_ends_the_run(tmp_path: Path) -> None:
    class Broken(Coin):
        def attempt(self, kind: str, draw: random.Random) -> Outcome:
            raise UsageError("it does not work at all")

    for number, attacks in enumerate(([Broken("a"), Coin("b")], [Coin("a"), Broken("b")])):
        with pytest.raises(UsageError, match="not work at all"):
            done(tmp_path / f"{number}.jsonl", attacks, 5)


def written(folder: Path) -> Path:
    import pandas as pd

    rows = pd.DataFrame({"value": [1 / 3, 2.0]})
    write_table(folder / "whole" / "table.csv", rows, {"device": "x"})
    return folder / "whole"


def test_damage_is_refused_or_lost_by_what_its_reader_does(tmp_path: Path) -> None:
    attack, whole = Damage(Stage(tmp_path, tmp_path / "scratch")), written(tmp_path)

    def careless(folder: Path) -> Any:
        return (folder / "table.csv").read_bytes()

    def broken(folder: Path) -> Any:
        raise ValueError("a traceback")

    def verdicts(read: Any) -> set[str]:
        attack._targets["table"] = Target(lambda: whole, "table.csv", read)
        return {attack.attempt("table", random.Random(n)).verdict for n in range(10)}

    assert verdicts(lambda folder: damage.read_table(folder / "table.csv").to_dict()) == {REFUSED}
    assert verdicts(careless) == {LOST}
    assert verdicts(broken) == {LOST}
    assert verdicts(lambda folder: None) == {LOST}  # other than what the whole one was read as


def test_threads_that_damage_the_same_files_make_them_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever makes them first empties their folder: beside another, that would be his."""
    attack, made = Damage(Stage(tmp_path, tmp_path / "scratch")), []

    def make(name: str, called: str, *more: str) -> Path:
        made.append(called)
        time.sleep(0.05)
        return tmp_path / called

    monkeypatch.setattr(attack, "_made", make)
    with ThreadPoolExecutor(3) as threads:
        kinds = ("metrics.csv", "summary.json", "config.yaml")
        found = list(threads.map(lambda kind: attack._targets[kind].folder(), kinds))
    assert (made, set(found)) == (["run"], {tmp_path / "run"})


def test_what_is_printed_while_a_file_is_read_is_not_swallowed(tmp_path: Path) -> None:
    """Threads read at once: the last to go would leave all of them without stderr."""
    attack, whole, seen = Damage(Stage(tmp_path, tmp_path / "scratch")), written(tmp_path), []

    def read(folder: Path) -> None:
        seen.append(sys.stderr)

    attack._targets["table"] = Target(lambda: whole, "table.csv", read)
    attack.attempt("table", random.Random(0))
    assert len(seen) == 2
    assert all(stream is sys.stderr for stream in seen)


def test_a_program_that_ends_just_before_the_signal_was_not_hit() -> None:
    """It can be gone before the process that forked it says so."""
    program = subprocess.Popen([sys.executable, "-c", ""])
    program.wait()
    running = Running.__new__(Running)
    running.pid = program.pid
    running.running = lambda: True  # type: ignore[method-assign]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(programs, "_minds_signals", lambda process: True)
        assert not running.strike(signal.SIGTERM, 0)


def test_one_thread_at_a_time_asks_how_programs_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """A start asks all that run, too; whoever asks second would be answered 255."""
    inside, most = [], []

    class Process:
        pid = 0

        def start(self) -> None:
            inside.append(1)
            time.sleep(0.01)
            most.append(len(inside))
            inside.pop()

        @property
        def exitcode(self) -> int:
            self.start()
            return 0

    context = SimpleNamespace(Process=lambda **_: Process())
    monkeypatch.setattr(programs.multiprocessing, "get_context", lambda kind: context)
    program = Program(Path(), (), Path())
    with ThreadPoolExecutor(4) as threads:
        ended = list(threads.map(lambda _: program.run().status, range(4)))
    assert ended == [0] * 4
    assert set(most) == {1}


def test_every_edit_changes_the_tree() -> None:
    def tree() -> dict[str, Any]:
        rows = [{"iteration": n, "loss": 0.5} for n in range(2)]
        return {"iteration": 3, "rows": rows, "weight": torch.ones(2), "flag": None}

    notes = {damage._edited(one := tree(), random.Random(n)): one for n in range(60)}
    assert len(notes) > 25
    for edited in notes.values():
        assert repr(edited) != repr(tree())


@pytest.mark.parametrize(
    ("ended", "refusal"),
    [
        (Ended(2, "", "error: no\n"), "error: no"),
        (Ended(2, "", "error: no\nerror: no\n"), None),
        (Ended(1, "", "error: no\n"), None),
        (Ended(2, "", "Traceback\n"), None),
    ],
)
def test_a_refusal_is_one_line(ended: Ended, refusal: str | None) -> None:
    assert ended.refusal == refusal


def test_an_end_that_is_another_is_told(tmp_path: Path) -> None:
    stage, subject = Stage(tmp_path, tmp_path), SUBJECTS[0]
    expected: Rows = {"a.csv": [{"iteration": "0", "loss": "0.5"}]}
    stage._unbroken[subject.name] = expected, 1.0
    file = tmp_path / "results" / "a.csv"
    file.parent.mkdir()

    def difference(text: str, ended: Ended) -> str | None:
        file.write_text(text)
        return stage.difference(subject, tmp_path, ended)

    good = Ended(0, "", "")
    assert difference("iteration,seconds,loss\n0,9.5,0.5\n", good) is None
    assert difference("iteration,seconds,loss\n0,9.5,0.6\n", good) == "other rows in a.csv"
    assert difference("iteration,loss\n", Ended(0, "", "Traceback ...")) is not None
    assert difference("iteration,loss\n0,0.5\n", Ended(-9, "", "")) == "status -9: "
    (file.parent / "b.csv").write_text("x\n")
    assert difference("iteration,loss\n0,0.5\n", good) == "other tables: ['b.csv']"


def test_trials_are_known_by_their_numbers(tmp_path: Path) -> None:
    """A number is passed over where a trial was killed while it began."""
    from rad.torture.subjects import _agree

    trials = [{"trial": str(n), "loss": str(n / 4)} for n in range(3)]
    assert _agree([*trials[:2], {"trial": "3", "loss": "9"}], trials)
    assert not _agree(trials[:2], trials)
    assert not _agree([*trials[:2], {"trial": "2", "loss": "9"}], trials)


def test_a_case_draws_the_same_again() -> None:
    case = Case("kill", "feedforward", 4)
    assert case.draw(0).random() == case.draw(0).random()
    assert len({case.draw(seed).random() for seed in range(5)}) == 5
    assert {*Kills(Stage(Path(), Path())).kinds} == {subject.name for subject in SUBJECTS}


def test_a_process_that_breaks_beside_the_one_killed_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Running:
        def __init__(self, status: int) -> None:
            self.status = status

        def strike(self, number: int, after: float) -> bool:
            return False

        def wait(self) -> Ended:
            return Ended(self.status, "", "ValueError: a bug" if self.status else "")

    statuses = iter([0, 1])
    stage = Stage(Path(), tmp_path)
    monkeypatch.setattr(stage, "unbroken", lambda subject: ({}, 0.0))
    program = SimpleNamespace(start=lambda: Running(next(statuses)))
    monkeypatch.setattr(stage, "program", lambda subject, folder: program)
    outcome = Kills(stage).attempt("tuning by two processes", random.Random(0))
    assert (outcome.verdict, "ValueError: a bug" in outcome.note) == (LOST, True)
