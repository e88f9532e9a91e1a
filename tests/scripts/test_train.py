import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import train
from calling import SCRIPTS, Call
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from rad import data
from rad.conversion.report import Report
from rad.memory.paper import NETWORKS
from rad.planning.plan import Memory, Plan
from rad.sketches import DifferentSample

TINY = ("model.hidden=[12,9]", "optimizer.iterations=6", "training.evaluate_every=3")
FIELDS = (
    "experiment model dataset variant seed budget scale kind allocation "
    "keep_fraction bits batch_size memory final "
    "iterations seconds_per_iteration device threads processor instructions digests "
    "versions commit command sha256"
)


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_a_run_leaves_rows_summary_and_configuration(call: Call, tmp_path: Path) -> None:
    done = call("train", "variant=different_sample", "seed=1", *TINY)
    assert done.status == 0, done.err
    begin, end = done.out.splitlines()
    assert "different_sample, batch 150" in begin
    closing = r"feedforward_digits different_sample 0.1 s1: test accuracy [\d.]+ %, training loss "
    assert re.fullmatch(closing + r"[\d.]+ in [\d.]+ s -> (.*)", end)[1] in begin  # type: ignore[index]
    assert re.search(r"batch 150, keep 0.1, [\d,]+ parameter \+ [\d,]+ saved bytes", done.out)
    (folder,) = (tmp_path / "results/feedforward_digits/different_sample").glob("*/seed=1")
    assert folder.parent.name == "budget=0.1," + ",".join(TINY)
    summary = json.loads((folder / "summary.json").read_text())
    assert list(summary) == FIELDS.split()
    assert (summary["batch_size"], summary["keep_fraction"], summary["seed"]) == (150, 0.1, 1)
    assert summary["memory"]["parameter_bytes"] == 4 * (64 * 12 + 12 + 12 * 9 + 9 + 9 * 10 + 10)
    rows = pd.read_csv(folder / "metrics.csv")
    assert list(rows["iteration"]) == [0, 3, 6]
    assert summary["final"]["train_loss"] == rows["train_loss"].iloc[-1]
    assert str(tmp_path) not in (folder / "config.yaml").read_text()


def test_a_sweep_makes_one_run_of_each_and_nothing_else(call: Call, tmp_path: Path) -> None:
    sweep = ("-m", "variant=baseline,reduced_batch", "budget=0.1,0.3", *TINY)
    done = call("train", *sweep)
    assert done.status == 0, done.err
    runs = [json.loads(p.read_text()) for p in sorted(tmp_path.rglob("summary.json"))]
    assert [(run["variant"], run["budget"]) for run in runs] == [
        ("baseline", "full"),
        ("reduced_batch", "0.1"),
        ("reduced_batch", "0.3"),
    ]
    assert runs[1]["batch_size"] < runs[2]["batch_size"] < 150
    assert [p.name for p in tmp_path.iterdir()] == ["results"]
    before = files(tmp_path)
    again = call("train", *sweep)
    assert again.out.count("finished already, skipped\n") == 4
    assert files(tmp_path) == before


def results_of(root: Path) -> dict[str, tuple[str, dict[str, object]]]:
    """Rows without their times, and summaries without times and commands, by folder."""
    found = {}
    for file in sorted(root.rglob("summary.json")):
        rows = pd.read_csv(file.with_name("metrics.csv")).drop(columns="seconds").to_csv()
        summary = json.loads(file.read_text())
        del summary["seconds_per_iteration"], summary["command"]
        del summary["sha256"], summary["digests"]["metrics.csv"]  # of the times among the rows
        found[str(file.parent.relative_to(root))] = rows, summary
    return found


def test_runs_of_one_process_end_as_runs_of_their_own(call: Call, tmp_path: Path) -> None:
    sweep = ("-m", "variant=baseline,same_sample", "budget=0.1,0.3", "seed=0,1", *TINY)
    assert call("train", *sweep, "results_root=single").status == 0
    done = call("train", *sweep, "results_root=shared", "runs_per_process=3")
    assert done.status == 0, done.err
    single, shared = results_of(tmp_path / "single"), results_of(tmp_path / "shared")
    assert len(single) == 6
    assert shared.keys() == single.keys()
    beside = [shared[name][1].pop("runs_per_process", 1) for name in shared]
    assert shared == single
    # Jobs of 3, 3 and 2: the first names a baseline twice, the second one that is there already.
    assert beside == 6 * [2]
    again = call("train", *sweep, "results_root=shared", "runs_per_process=8")
    assert again.out.count("finished already, skipped\n") == 6


def test_a_run_that_diverges_does_not_end_those_beside_it(call: Call, tmp_path: Path) -> None:
    sweep = ("-m", "optimizer.learning_rate=1e30,1e-3", "variant=baseline", "runs_per_process=2")
    done = call("train", *sweep, "optimizer=sgd", *TINY)
    assert done.status == 2
    assert "lower the learning rate" in done.err.splitlines()[-1]
    (summary,) = tmp_path.rglob("summary.json")
    assert "learning_rate=0.001" in str(summary)


def test_variants_and_budgets_start_from_the_same_weights(call: Call, tmp_path: Path) -> None:
    call("train", "-m", "variant=baseline,same_sample", *TINY)
    first = [pd.read_csv(p)["train_loss"].iloc[0] for p in tmp_path.rglob("metrics.csv")]
    assert len(first) == 2
    assert first[0] == first[1]


def test_slices_train_the_same_model_in_a_folder_of_their_own(call: Call, tmp_path: Path) -> None:
    for size in ("null", "64"):
        assert call("train", "variant=baseline", f"slices={size}", *TINY).status == 0
    found = sorted(tmp_path.rglob("metrics.csv"))
    found.sort(key=lambda path: "slices=" in str(path))
    assert ["slices=64" in str(path) for path in found] == [False, True]
    whole, sliced = (pd.read_csv(path)["train_loss"] for path in found)
    assert sliced.to_numpy() == pytest.approx(whole.to_numpy(), rel=1e-4)
    refused = call("train", "slices=0", *TINY)
    assert refused.status == 2
    assert "slices is 0" in refused.err


def test_a_fused_optimizer_trains_the_same_model_in_a_folder_of_its_own(
    call: Call, tmp_path: Path
) -> None:
    for given in ((), ("optimizer.fused=true",)):
        assert call("train", "variant=baseline", *given, *TINY).status == 0
    word = "optimizer.fused=true"
    usual, fused = sorted(tmp_path.rglob("metrics.csv"), key=lambda path: word in str(path))
    assert (word in str(usual), word in str(fused)) == (False, True)
    assert "fused" not in usual.with_name("config.yaml").read_text()
    assert OmegaConf.load(fused.with_name("config.yaml")).optimizer.fused is True
    losses = [pd.read_csv(path)["train_loss"].to_numpy() for path in (usual, fused)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    refused = call("train", "optimizer.fused=maybe", *TINY)
    assert refused.status == 2
    assert "fused is 'maybe'" in refused.err


def test_a_finished_run_needs_neither_data_nor_plan(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    call("train", *TINY)

    def never(*_: object) -> None:
        raise AssertionError("loaded or planned")

    monkeypatch.setattr(data, "load", never)
    monkeypatch.setattr(train, "plan", never)
    done = call("train", *TINY)
    assert done.status == 0
    assert "skipped" in done.out


def test_a_run_out_of_time_goes_on_where_it_stopped(call: Call, tmp_path: Path) -> None:
    stopped = call("train", *TINY, "training.time_limit=1e-9")
    assert stopped.status == 0
    assert "the same command goes on" in stopped.out
    assert not list(tmp_path.rglob("summary.json"))
    for _ in range(3):
        call("train", *TINY)
    (summary,) = tmp_path.rglob("summary.json")
    assert json.loads(summary.read_text())["iterations"] == 6


def test_wandb_records_offline(call: Call, tmp_path: Path) -> None:
    assert call("train", *TINY, "logger.directory=records").status == 0
    assert list((tmp_path / "records/wandb").glob("offline-run-*/*.wandb"))
    beside = ("seed=1,2", "runs_per_process=2", "logger.directory=beside")
    assert call("train", "-m", *TINY, *beside).status == 0
    assert len(list((tmp_path / "beside/wandb").glob("offline-run-*/*.wandb"))) == 2


def truncated(folder: Path) -> None:
    np.savez(folder / "mnist.npz", train_images=np.zeros((40, 1, 28, 28), np.uint8))
    whole = (folder / "mnist.npz").read_bytes()
    (folder / "mnist.npz").write_bytes(whole[: len(whole) // 2])


BAD = {
    "unknown variant": (("variant=sparse",), "unknown variant 'sparse'.*baseline.*project"),
    "unknown model": (("model=vgg",), "unknown model 'vgg'.*feedforward"),
    "unknown data set": (("dataset=imagenet",), "unknown dataset 'imagenet'.*digits.*mnist"),
    "unknown experiment": (("+experiment=fig99",), "unknown experiment 'fig99'.*quickstart"),
    "unknown key": (("optimizer.momentum=1",), "unknown setting 'optimizer.momentum'.*--help"),
    "added key": (("+optimizer.momentum=1",), "optimizer.momentum.*--help"),
    "broken override": (("budget=[",), r"budget=\["),
    "sweep without -m": (("seed=0,1",), "--multirun"),
    "budget 0": (("budget=0",), "budget 0 .*fraction"),
    "negative budget": (("budget=-3",), "budget -3 .*fraction"),
    "fraction above 1": (("budget=1.5",), "budget 1.5 .*whole"),
    "no unit": (("budget='3.3'",), "budget '?3.3'? .*unit"),
    "unknown unit": (("budget='3 apples'",), "budget '3 apples'.*MB"),
    "list budget": (("budget=[1]",), "budget .*one number"),
    "below the weights": (("budget=1000",), "1000.*too small.*at least"),
    "seed": (("seed=x",), "seed.*whole number"),
    "batch": (("batch_size=0",), "batch_size is 0.*whole number"),
    "iterations": (("optimizer.iterations=1.5",), "iterations is 1.5.*whole"),
    "learning rate": (("optimizer.learning_rate=fast",), "learning_rate is 'fast'"),
    "width": (("model.hidden=[0]",), "model.hidden is .0.; give a list"),
    "width of no list": (("model.hidden=5",), "model.hidden is 5; give a list"),
    "device": (("device=tpu",), "device 'tpu'.*auto"),
    "absent device": (("device=cuda:99",), "device 'cuda:99'.*auto"),
    "logger mode": (("logger.mode=loud",), "logger.mode 'loud'; choose one of online"),
    "no runs": (("runs_per_process=0",), "runs_per_process is 0.*at least 1"),
    "late in a sweep": (("-m", "budget=0.1,0.3,-1"), "budget -1"),
    "late variant": (("-m", "variant=baseline,sparse"), "unknown variant 'sparse'"),
}


@pytest.mark.parametrize(("arguments", "pattern"), BAD.values(), ids=BAD.keys())
def test_bad_input_ends_in_one_line(
    arguments: tuple[str, ...], pattern: str, call: Call, tmp_path: Path
) -> None:
    done = call("train", *arguments, *([] if "variant=" in str(arguments) else ["variant=project"]))
    assert done.status == 2
    assert len(done.err.splitlines()) == 1, done.err
    assert re.search(pattern, done.err)
    assert not done.out
    assert not list(tmp_path.iterdir())


def test_damaged_data(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    truncated(tmp_path)
    monkeypatch.setenv("RAD_DATA", str(tmp_path))
    before = files(tmp_path)
    done = call("train", "dataset=mnist")
    assert (done.status, len(done.err.splitlines())) == (2, 1)
    assert "mnist.npz" in done.err
    assert files(tmp_path) == before


def test_results_folder_that_cannot_be_written(call: Call, tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file")
    done = call("train", *TINY)
    assert (done.status, len(done.err.splitlines())) == (2, 1)
    assert "cannot write to the results folder" in done.err
    assert (tmp_path / "results").read_text() == "a file"


def test_checkpoint_of_another_configuration(call: Call, tmp_path: Path) -> None:
    call("train", *TINY, "training.time_limit=1e-9")
    (config,) = tmp_path.rglob("config.yaml")
    config.write_text(config.read_text().replace("batch_size: 150", "batch_size: 90"))
    before = files(tmp_path)
    done = call("train", *TINY)
    assert (done.status, len(done.err.splitlines())) == (2, 1)
    assert "batch_size" in done.err
    assert files(tmp_path) == before


def test_a_finished_run_of_another_configuration_says_so(call: Call, tmp_path: Path) -> None:
    call("train", *TINY)
    (config,) = tmp_path.rglob("config.yaml")
    config.write_text(config.read_text().replace("batch_size: 150", "batch_size: 90"))
    assert "batch_size (90 there, 150 here)" in call("train", *TINY).out


def test_a_bug_keeps_its_traceback(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(train, "plan", broken)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        call("train", *TINY)


def test_an_interrupt_ends_in_one_line(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "plan", interrupted)
    done = call("train", *TINY)
    assert done.status == 130
    assert done.err == "stopped by SIGINT; the same command goes on with what is unfinished\n"


def test_the_plan_counts_as_the_loop_saves() -> None:
    with initialize_config_dir(str(SCRIPTS.parent / "configs/train"), version_base="1.3"):
        config = compose("train", overrides=["variant=different_sample"])
    spec = train.read(config, [])
    built = train.plan(spec, data.load("digits"))
    sampled = 4 * 150 * (7 + 3 * 30) + 3 * 150 * 300 // 8
    outputs = 150 * 10 * 4 + 150 * 8
    assert built.plan.memory.saved_bytes == pytest.approx(sampled + outputs, rel=0.01)
    assert torch.get_default_dtype() == torch.float32


def test_as_a_program(tmp_path: Path) -> None:
    def program(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(SCRIPTS / "train.py"), *arguments, "logger.mode=disabled"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    bad = program("-m", "variant=project", "budget=0.1,0")
    assert (bad.returncode, bad.stdout, len(bad.stderr.splitlines())) == (2, "", 1)
    assert not list(tmp_path.iterdir())
    good = program("-m", "variant=baseline,project", *TINY)
    assert (good.returncode, good.stderr) == (0, "")
    assert len(list(tmp_path.rglob("summary.json"))) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["results"]


def test_paper_bytes_stand_where_the_network_is_the_papers() -> None:
    planned = Plan(
        variant="different_sample",
        budget="0.1",
        kind="saved",
        allocation="uniform",
        sketch=DifferentSample(0.1),
        keep_fraction=0.1,
        bits=None,
        batch_size=150,
        memory=Memory(0, 0, 0),
        report=Report((), ()),
    )

    def megabytes(*overrides: str, planned: Plan = planned, usual: bool = True) -> str | None:
        with initialize_config_dir(str(SCRIPTS.parent / "configs/train"), version_base="1.3"):
            config = compose("train", overrides=list(overrides))
        parameters = 4 * NETWORKS[config.model.name].parameters if usual else 4
        sized = replace(planned, memory=Memory(parameters, 0, 0))
        count = train._paper_bytes(train.read(config, []), sized)
        return None if count is None else f"{count / 1e6:.2f}"

    assert megabytes("model=feedforward", "dataset=mnist") == "1.80"
    assert megabytes("model=irnn", "dataset=sequential_mnist") == "7.01"
    assert megabytes("model=irnn", "dataset=sequential_mnist", "dataset.downsample=4") is None
    assert megabytes("model=irnn", "dataset=digits") is None
    divided = replace(planned, keep_fraction=None, layers={"1": 0.1})
    assert megabytes("model=feedforward", "dataset=mnist", planned=divided) is None
    rounded = replace(planned, keep_fraction=None, bits=2)
    assert megabytes("model=feedforward", "dataset=mnist", planned=rounded) is None
    assert megabytes("model=feedforward", "dataset=mnist", usual=False) is None
