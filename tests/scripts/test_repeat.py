"""A run, trained again from its config.yaml."""

import json
from pathlib import Path

import pytest
import repeat
import torch
from _run_spec import defaults
from calling import SCRIPTS, Call

from rad.errors import UsageError
from rad.results import RunFolder, difference

RESULTS = SCRIPTS.parent / "results"

TINY = ("model.hidden=[12,9]", "optimizer.iterations=6", "training.evaluate_every=3")
OTHER = ("variant=same_sample", "variant.replacement=false", "optimizer=sgd", "batch_size=40")

SCALED = ("experiment=fig5b_mnist", "dataset=digits", "scale=smoke")


@pytest.mark.parametrize("settings", [(), OTHER, SCALED], ids=["defaults", "others", "scaled"])
def test_the_rows_come_out_the_same(
    settings: tuple[str, ...],
    call: Call,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    threads = torch.get_num_threads()
    assert call("train", "seed=3", *settings, *TINY).status == 0
    (summary,) = tmp_path.rglob("summary.json")
    before = summary.read_bytes()
    assert repeat.main([str(summary.parent)]) == 0
    assert capsys.readouterr().out.endswith("metrics.csv is the same\n")
    assert summary.read_bytes() == before
    assert torch.get_num_threads() == threads

    file = summary.with_name("metrics.csv")
    *rows, last = file.read_text().splitlines()
    values = last.split(",")
    values[4] = "0.25"
    file.write_text("\n".join([*rows, ",".join(values)]) + "\n")
    with pytest.raises(UsageError, match=r"metrics\.csv does not match its digest"):
        repeat.main([str(summary.parent)])
    RunFolder(summary.parent).write_summary(json.loads(before))  # vouches for what is there now
    assert repeat.main([str(summary.parent)]) == 1
    differs = "metrics.csv differs: train_loss at iteration 6: np.float64(0.25) was recorded"
    assert differs.replace("np.float64(0.25)", "0.25") in capsys.readouterr().out


def test_a_folder_without_a_finished_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no finished run"):
        repeat.main([str(tmp_path)])


def test_a_run_of_the_pde_is_refused_with_its_command(call: Call, tmp_path: Path) -> None:
    run = ("experiment_name=control", "scale=smoke", "optimizer.iterations=2", "budget=0.1")
    assert call("train_pde", *run).status == 0
    (summary,) = tmp_path.rglob("summary.json")
    with pytest.raises(UsageError, match=r"python scripts/train_pde\.py .* results_root="):
        repeat.main([str(summary.parent)])


ONE_OF_EACH = {
    summary.parents[3]: summary.parent
    for summary in sorted(RESULTS.glob("*/*/*/*/summary.json"))
    if "quickstart" not in summary.parts  # which git ignores
    and json.loads(summary.read_text())["model"] != "reaction_diffusion"
}


@pytest.mark.parametrize("folder", ONE_OF_EACH.values(), ids=[each.name for each in ONE_OF_EACH])
def test_a_committed_run_is_read_as_it_was_given(folder: Path) -> None:
    recorded = RunFolder(folder)
    spec = repeat.spec_of(recorded, device="cpu", data_root=None, output="elsewhere")
    assert difference(recorded.config_file.read_text(), spec.text, defaults()) == ""
