import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import tune
import yaml
from calling import Call

from rad import data
from rad.data import Dataset

TINY = (
    "dataset=digits",
    "device=cpu",
    "model.hidden=[9]",
    "optimizer.iterations=6",
    "tuning.held_out=300",
    "tuning.trials=2",
)


@pytest.fixture
def call(call: Call) -> Call:
    """Runs `python scripts/tune.py <arguments>` in this process, in an empty folder."""
    return partial(call, "tune")


def test_winners_of_each_variant(call: Call, tmp_path: Path) -> None:
    done = call("-m", "variant=reduced_batch,project", *TINY)
    assert done.status == 0, done.err
    folder = tmp_path / "results/tuning/feedforward_digits"
    assert {file.name for file in folder.iterdir()} == {
        ".lock",
        "best.yaml",
        "journal.log",
        "trials.csv",
    }
    rows = pd.read_csv(folder / "trials.csv")
    assert list(rows["trial"]) == [0, 1, 0, 1]
    best = yaml.safe_load((folder / "best.yaml").read_text())
    settings = "budget=0.1,model.hidden=[9],optimizer.iterations=6,tuning.held_out=300/seed=0"
    assert list(best) == [f"project/{settings}", f"reduced_batch/{settings}"]
    for name, winner in best.items():
        of_study = rows[rows["study"] == name]
        assert winner["held_out_loss"] == of_study["held_out_loss"].min()
        assert winner["commit"] != "unknown"
    assert "batch 150" in best[f"project/{settings}"]["run"]
    assert re.search(r"batch \d\d,", best[f"reduced_batch/{settings}"]["run"])
    assert not list(tmp_path.glob("outputs/**/trial=*"))
    more = call("-m", "variant=reduced_batch,project", *TINY[:-1], "tuning.trials=3")
    assert more.out.count("trial 2:") == 2
    assert "trial 1:" not in more.out


def test_no_test_image_is_ever_seen(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    marked = data.load("digits")
    marked.test_images.fill_(255)
    marked.test_labels.fill_(9)
    seen: list[Dataset] = []
    held_out_loss = tune.held_out_loss

    def spy(spec: Any, dataset: Dataset, *rest: Any) -> float:
        seen.append(dataset)
        return held_out_loss(spec, dataset, *rest)

    monkeypatch.setattr(data, "load_images", lambda *_: marked)
    monkeypatch.setattr(tune, "held_out_loss", spy)
    assert call("variant=project", *TINY).status == 0
    assert len(seen) == 2
    for dataset in seen:
        assert len(dataset.train_labels) + len(dataset.test_labels) == len(marked.train_labels)
        tensors = [value for value in vars(dataset).values() if isinstance(value, torch.Tensor)]
        assert not any((t.flatten(1) == 255).all(1).any() for t in tensors if t.dim() == 4)
        assert not any(t.data_ptr() == marked.test_images.data_ptr() for t in tensors)


def test_the_score_is_the_loss_on_the_held_out_examples(call: Call, tmp_path: Path) -> None:
    call("variant=baseline", *TINY, "logger.mode=disabled")
    journal = (tmp_path / "results/tuning/feedforward_digits/journal.log").read_text()
    scores = [v for line in journal.splitlines() if (v := json.loads(line).get("values"))]
    rows = pd.read_csv(tmp_path / "results/tuning/feedforward_digits/trials.csv")
    assert [score[0] for score in scores] == list(rows["held_out_loss"])
    assert rows["held_out_loss"].between(1, 3).all()


def test_a_trial_that_diverges_is_recorded_and_the_search_goes_on(
    call: Call, tmp_path: Path
) -> None:
    wild = ("optimizer=sgd", "optimizer.clip_norm=null", "tuning.learning_rate=[1e20,1e30]")
    done = call("variant=project", *TINY, *wild)
    assert done.status == 0, done.err
    rows = pd.read_csv(tmp_path / "results/tuning/feedforward_digits/trials.csv")
    assert list(rows["held_out_loss"]) == [float("inf")] * 2


BAD = {
    "range": (("tuning.learning_rate=[1,0.1]",), "range of learning_rate.*low < high"),
    "no range": (("tuning.weight_decay=3",), "weight_decay is 3; give a list .* of 2"),
    "trials": (("tuning.trials=0",), "tuning.trials is 0.*whole number"),
    "held out": (("tuning.held_out=half",), "held_out is 'half'"),
    "too many held out": (("dataset=digits", "tuning.held_out=1437"), "of 1,437 training"),
    "sampler": (("tuning.sampler=grid",), "unknown tuning.sampler 'grid'.*random, tpe"),
    "tuned value": (("optimizer.learning_rate=1",), "sets what is tuned"),
    "late in a sweep": (("-m", "budget=0.1,-1"), "budget -1"),
    "unknown key": (("tuning.pruner=x",), "unknown setting 'tuning.pruner'"),
}


@pytest.mark.parametrize(("arguments", "pattern"), BAD.values(), ids=BAD.keys())
def test_bad_input_ends_in_one_line(
    arguments: tuple[str, ...], pattern: str, call: Call, tmp_path: Path
) -> None:
    done = call(*arguments, "variant=project")
    assert done.status == 2
    assert len(done.err.splitlines()) == 1, done.err
    assert re.search(pattern, done.err)
    assert not done.out
    assert not list(tmp_path.iterdir())
