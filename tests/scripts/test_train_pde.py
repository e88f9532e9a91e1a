import json
import re
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
from _cli import CONFIGS
from _pde_spec import read
from calling import Call
from hydra import compose, initialize_config_dir

SMOKE = ("scale=smoke", "logger.mode=disabled")


@pytest.fixture
def train(call: Call) -> Call:
    """Runs `python scripts/train_pde.py <arguments>` in this process, in an empty folder."""
    return partial(call, "train_pde")


def rows(root: Path) -> dict[str, pd.DataFrame]:
    return {
        str(file.parent.relative_to(root)): pd.read_csv(file).drop(columns="seconds")
        for file in sorted(root.rglob("metrics.csv"))
    }


def test_a_sweep_leaves_one_folder_for_each_run(train: Call, tmp_path: Path) -> None:
    sweep = ("-m", "variant=baseline,different_sample,checkpointing", "budget=0.1", *SMOKE)
    done = train(*sweep)
    assert done.status == 0, done.err
    folder = "results/fig6_pde/{}/budget={},scale=smoke/seed=0"
    runs = rows(tmp_path)
    assert list(runs) == sorted(
        folder.format(*run)
        for run in (
            ("baseline", "full"),
            ("checkpointing", 0.1),
            ("different_sample", 0.1),
        )
    )
    exact = runs[folder.format("baseline", "full")]
    assert list(exact["iteration"]) == [0, 2, 4, 6]
    assert exact["train_loss"].is_monotonic_decreasing
    assert exact.equals(runs[folder.format("checkpointing", 0.1)])
    sampled = runs[folder.format("different_sample", 0.1)]
    assert sampled["train_loss"][0] == exact["train_loss"][0]
    assert not sampled.equals(exact)
    summary = json.loads(
        (tmp_path / folder.format("different_sample", 0.1) / "summary.json").read_text()
    )
    assert (summary["keep_fraction"], summary["iterations"]) == (0.1, 6)
    assert summary["memory"]["saved_bytes"] == pytest.approx(513 * 5 * 4, rel=0.02)
    assert summary["final"]["train_loss"] == sampled["train_loss"].iloc[-1]
    assert train(*sweep).out.count("skipped") == 3


def test_an_interrupted_run_ends_as_the_unbroken_one(train: Call, tmp_path: Path) -> None:
    assert train(*SMOKE).status == 0
    stopped = train(*SMOKE, "results_root=other", "training.time_limit=1e-9")
    assert "the same command goes on from there" in stopped.out
    assert not list((tmp_path / "other").rglob("summary.json"))
    assert train(*SMOKE, "results_root=other").status == 0
    (unbroken,), (broken,) = (rows(tmp_path / r).values() for r in ("results", "other"))
    assert unbroken.equals(broken)
    first, second = (
        json.loads(next((tmp_path / r).rglob("summary.json")).read_text())
        for r in ("results", "other")
    )
    assert first["final"] == second["final"]


def test_tensorboard_shows_what_changes_and_the_plan(train: Call, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    done = train("scale=smoke", "logger=tensorboard", "logger.directory=board")
    assert done.status == 0, done.err
    (metrics,) = rows(tmp_path / "results").items()
    read = EventAccumulator(str(tmp_path / "board" / metrics[0])).Reload()
    assert read.Tags()["scalars"] == ["loss/train"]  # no axis, no learning rate that stays
    shown = [(each.step, each.value) for each in read.Scalars("loss/train")]
    columns = zip(metrics[1]["iteration"], metrics[1]["train_loss"], strict=True)
    assert shown == [(step, pytest.approx(loss)) for step, loss in columns]
    (plan,) = read.Tensors("plan/text_summary")
    summary = json.loads(next((tmp_path / "results").rglob("summary.json")).read_text())
    text = plan.tensor_proto.string_val[0].decode()
    assert f'"saved_bytes": {summary["memory"]["saved_bytes"]}' in text
    assert '"keep_fraction": 0.01' in text
    assert "DifferentSample" in text
    (config,) = read.Tensors("configuration/text_summary")
    assert b'"dt"' in config.tensor_proto.string_val[0]
    assert train("scale=smoke", "logger=tensorboard", "logger.directory=b2").out.count("skipped")


def test_a_control_that_blows_up_is_reported(train: Call, tmp_path: Path) -> None:
    done = train(*SMOKE, "optimizer.learning_rate=1e7")
    assert (done.status, len(done.err.splitlines())) == (2, 1)
    assert re.search(r"the loss is (inf|nan) at iteration \d+; lower the learning rate", done.err)
    assert not list(tmp_path.rglob("summary.json"))


def test_the_experiment_beyond_the_paper(train: Call, tmp_path: Path) -> None:
    done = train("+experiment=beyond_pde", "variant.bits=3", "budget=0.1", *SMOKE)
    assert done.status == 0, done.err
    (summary,) = tmp_path.rglob("summary.json")
    folder = "results/beyond_pde/sampled_rounding/budget=0.1,scale=smoke,variant.bits=3/seed=0"
    assert summary.parent == tmp_path / folder


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        (("problem.dt=0.001",), r"dt=0.001 is unstable.*give at most 0\.0009765625"),
        (("problem.dtype=int8",), "unknown problem.dtype 'int8'.*float64"),
        (("problem.terms=[[0]]",), "terms is .*each a list .* of 2"),
        (("problem.terms=3",), "terms is 3"),
        (("problem.points=two",), "points is 'two'"),
        (("variant=project",), "unknown variant 'project'.*checkpointing"),
        (("budget=1.5",), "above 1"),
        (("budget=[1]",), "one number or size"),
        (("-m", "budget=0.1,100"), "100 is too small"),
        (("seed=-1",), "seed is -1"),
        (("logger.mode=loud",), "unknown logger.mode"),
        (("device=tpu",), "unknown device"),
        (("optimizer.momentum=1",), "unknown setting"),
        (("+optimizer.momentum=1",), "adds or removes"),
        (("optimizer.learning_rate=0",), "learning_rate is 0"),
    ],
)
def test_bad_input_ends_in_one_line(
    arguments: tuple[str, ...], pattern: str, train: Call, tmp_path: Path
) -> None:
    done = train(*arguments)
    assert done.status == 2
    assert len(done.err.splitlines()) == 1, done.err
    assert re.search(pattern, done.err)
    assert not list(tmp_path.iterdir())


def test_the_defaults_are_figure_6_at_paper_scale() -> None:
    with initialize_config_dir(str(CONFIGS / "pde"), version_base="1.3"):
        config = compose("pde", overrides=["budget=0.001", "seed=2"])
    spec = read(config, ["budget=0.001", "seed=2"])
    assert (spec.problem.points, spec.problem.steps, spec.problem.dt) == (33, 40_960, 1 / 4096)
    assert (spec.settings.iterations, spec.settings.learning_rate) == (800, 0.01)
    assert str(spec.path) == "results/fig6_pde/different_sample/budget=0.001/seed=2"
    for name in ("device", "results_root", "logger", "time_limit"):
        assert f"{name}:" not in spec.text
