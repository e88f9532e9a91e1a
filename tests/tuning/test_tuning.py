"""Held-out examples, samplers, and trials that survive their workers."""

import csv
import math
import multiprocessing
from pathlib import Path

import optuna
import pytest
import torch
import yaml
from optuna.distributions import FloatDistribution
from unbiased import LEVEL

from rad import data
from rad.errors import UsageError
from rad.tuning import Search, Space, hold_out
from rad.tuning.space import KeyedSampler

SPACE = Space((1e-4, 1e-2), (1e-7, 1e-3))
TEXT = "model: toy\niterations: 7\n"
optuna.logging.set_verbosity(optuna.logging.WARNING)


def search(
    root: Path, sampler: str = "random", name: str = "project/budget=0.1", text: str = TEXT
) -> Search:
    keyed = KeyedSampler(sampler, 3)
    notes = {"scale": None, "commit": "abc"}
    return Search(root / "results", name, text, SPACE, keyed, notes, root / "scratch")


def loss(learning_rate: float, weight_decay: float) -> float:
    return (math.log10(learning_rate) + 3) ** 2 + 0.1 * (math.log10(weight_decay) + 5) ** 2


def work(of: Search, trials: int) -> list[tuple[int, float, float]]:
    done = []
    while True:
        with of.claim(trials, {"commit": "abc"}) as trial:
            if trial is None:
                return done
            of.finish(trial, loss(trial.learning_rate, trial.weight_decay))
            done.append((trial.number, trial.learning_rate, trial.weight_decay))


def exported(root: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((root / "results/trials.csv").open()))


def test_held_out_examples_leave_the_training_set_and_replace_the_test_set() -> None:
    whole = data.load("digits")
    parts = hold_out(whole, 300, seed=2)
    assert (len(parts.train_labels), len(parts.test_labels)) == (1137, 300)
    together = torch.cat([parts.train_images, parts.test_images]).flatten(1).tolist()
    assert sorted(together) == sorted(whole.train_images.flatten(1).tolist())
    pairs = {(str(image.tolist()), int(label)) for image, label in zip(*both(whole), strict=True)}
    for images, labels in (both(parts), (parts.test_images, parts.test_labels)):
        assert pairs >= {(str(i.tolist()), int(n)) for i, n in zip(images, labels, strict=True)}
    assert torch.equal(hold_out(whole, 300, 2).test_images, parts.test_images)
    assert not torch.equal(hold_out(whole, 300, 3).test_images, parts.test_images)


def both(dataset: data.Dataset) -> tuple[torch.Tensor, torch.Tensor]:
    return dataset.train_images, dataset.train_labels


@pytest.mark.parametrize("count", [0, -1, 1437, 5000, 1.5, True])
def test_what_cannot_be_held_out(count: float) -> None:
    with pytest.raises(UsageError, match="of 1,437 training examples"):
        hold_out(data.load("digits"), count, 0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "values", [(1e-3, 1e-4), (0.0, 1.0), (1e-3,), (1e-3, math.inf), ("a", "b"), (True, 2.0)]
)
def test_bad_range(values: tuple[float, float]) -> None:
    with pytest.raises(UsageError, match=r"range of weight_decay.*low < high"):
        Space((1e-4, 1e-2), values)


def test_unknown_sampler() -> None:
    with pytest.raises(UsageError, match="'grid'; choose one of random, tpe"):
        KeyedSampler("grid", 0)


def test_random_search_is_log_uniform_and_independent() -> None:
    n, sampler, study = 2000, KeyedSampler("random", 1), optuna.create_study()
    ranges = {"learning_rate": (1e-4, 1e-2), "weight_decay": (1e-7, 1e-3)}
    columns = []
    for name, (low, high) in ranges.items():
        distribution = FloatDistribution(low, high, log=True)
        values = [
            sampler.sample_independent(study, frozen(number), name, distribution)
            for number in range(n)
        ]
        columns.append(torch.tensor(values).div(low).log().div(math.log(high / low)))
    pairs = torch.stack(columns)
    assert pairs.min() >= 0
    assert pairs.max() <= 1
    z = 5.33
    assert math.erfc(z / math.sqrt(2)) < LEVEL
    deviation = math.sqrt(1 / 12 / n)
    for u in pairs:
        assert abs(u.mean() - 0.5) < z * deviation
        assert abs(u.square().mean() - 1 / 3) < z * math.sqrt(4 / 45 / n)
    assert abs(torch.corrcoef(pairs)[0, 1]) < z / math.sqrt(n)
    assert abs(1.1 * pairs[0].mean() - 0.5) > z * deviation


def frozen(number: int) -> optuna.trial.FrozenTrial:
    trial = optuna.trial.create_trial(value=0.0)
    trial.number = number
    return trial


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_one_worker_repeats_itself_and_goes_on_as_if_never_stopped(
    sampler: str, tmp_path: Path
) -> None:
    unbroken = work(search(tmp_path / "a", sampler), 14)
    assert [number for number, _, _ in unbroken] == list(range(14))
    assert len({rate for _, rate, _ in unbroken}) == 14
    parts = [work(search(tmp_path / "b", sampler), trials) for trials in (3, 12, 14)]
    assert [trial for part in parts for trial in part] == unbroken
    assert exported(tmp_path / "a") == exported(tmp_path / "b")
    assert work(search(tmp_path / "b", sampler), 14) == []


def test_the_samplers_differ(tmp_path: Path) -> None:
    assert work(search(tmp_path / "a"), 14) != work(search(tmp_path / "b", "tpe"), 14)


def test_an_abandoned_trial_is_taken_up_again_in_its_folder(tmp_path: Path) -> None:
    with search(tmp_path).claim(2, {}) as left:
        assert left is not None
        (left.folder.path / "checkpoint.pt").write_text("so far")
    with search(tmp_path).claim(2, {}) as taken:
        assert taken is not None
        assert (taken.number, taken.learning_rate) == (left.number, left.learning_rate)
        assert (taken.folder.path / "checkpoint.pt").exists()


def test_trials_in_other_hands_are_left_alone(tmp_path: Path) -> None:
    first, second = search(tmp_path), search(tmp_path)
    with first.claim(2, {}) as one, second.claim(2, {}) as two:
        assert one is not None
        assert two is not None
        assert (one.number, two.number) == (0, 1)
        with search(tmp_path).claim(2, {}) as three:
            assert three is None
        first.finish(one, 1.0)
        second.finish(two, 0.5)
    assert not list((tmp_path / "scratch").rglob("trial=*"))
    assert search(tmp_path).finished() == 2


def test_a_trial_killed_while_it_was_asked_for_does_not_count(tmp_path: Path) -> None:
    of = search(tmp_path)
    of.study.ask()
    assert [number for number, _, _ in work(of, 2)] == [1, 2]


def test_tables_hold_all_trials_and_the_winners(tmp_path: Path) -> None:
    done = work(search(tmp_path), 5)
    with search(tmp_path, name="baseline/budget=full").claim(1, {"commit": "abc"}) as trial:
        assert trial is not None
        search(tmp_path, name="baseline/budget=full").finish(trial, math.nan)
    rows = exported(tmp_path)
    assert [row["study"] for row in rows] == ["baseline/budget=full"] + 5 * ["project/budget=0.1"]
    assert rows[0]["held_out_loss"] == "inf"
    best = yaml.safe_load((tmp_path / "results/best.yaml").read_text())
    assert list(best) == ["project/budget=0.1"]
    winner = best["project/budget=0.1"]
    number, rate, decay = min(done, key=lambda trial: loss(*trial[1:]))
    assert (winner["trial"], winner["trials"], winner["commit"]) == (number, 5, "abc")
    overrides = f"optimizer.learning_rate={rate!r} optimizer.weight_decay={decay!r}"
    assert winner["overrides"] == overrides
    assert float(rows[1 + number]["learning_rate"]) == rate


def test_a_study_of_another_configuration_is_refused(tmp_path: Path) -> None:
    search(tmp_path)
    with pytest.raises(UsageError, match=r"iterations \(7 there, 9 here\)"):
        search(tmp_path, text=TEXT.replace("7", "9"))


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file")
    with pytest.raises(UsageError, match="choose another results_root"):
        search(tmp_path)


def test_two_processes_share_a_study(tmp_path: Path) -> None:
    processes = multiprocessing.get_context("fork")
    start, counts = processes.Barrier(2), processes.Queue()

    def worker() -> None:
        of = search(tmp_path)
        start.wait()
        counts.put(len(work(of, 12)))

    workers = [processes.Process(target=worker) for _ in range(2)]
    for process in workers:
        process.start()
    assert sum(counts.get(timeout=120) for _ in workers) == 12
    for process in workers:
        process.join()
    assert [int(row["trial"]) for row in exported(tmp_path)] == list(range(12))
    alone = [rate for _, rate, _ in work(search(tmp_path / "alone"), 12)]
    assert [float(row["learning_rate"]) for row in exported(tmp_path)] == alone
