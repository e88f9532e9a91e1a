"""What lies on disk is not replaced by nothing, nor read where it is damaged."""

import json
import re
from pathlib import Path

import model_zoo
import pandas as pd
import pytest
import repeat
from calling import Call

from rad.benchmarks.pareto import Known, known_losses
from rad.errors import UsageError
from rad.results import RunFolder, write_table

TINY = ("model.hidden=[12,9]", "optimizer.iterations=6", "training.evaluate_every=3")
PARETO = [f"~networks.{name}" for name in ("feedforward", "convnet", "irnn", "pde")]

EMPTY = {
    "allocation": [["networks=[]"], ["variants=[]"], ["networks=feedforward"]],
    "benchmark": [["networks=[]"], ["programs=[]"], ["pde.fractions=[]", "networks=[pde]"]],
    "largest_batch": [["networks=[]"], ["programs=[]"]],
    "model_zoo": [["models=[]"], ["programs=[]"], ["models=gpt2"]],
    "pareto": [PARETO, [*PARETO, "measure=false"]],
    "partition_benchmark": [["networks=[]"], ["budgets=[]"], ["memory_budgets=[]"]],
    "path_sampling": [["settings=[]"], ["depths=[]"]],
    "pde_variance": [["variants=[]"], ["fractions=[]"]],
    "recurrent_variance": [["downsample=[]"]],
    "sketch_variance": [["rows=[]"], ["fractions=[]"], ["variants=[]"]],
    "gradient_noise": [["noise.variants=[]"], ["noise.iterations=[]"], ["noise.keep_fractions=[]"]],
}
CASES = [(name, arguments) for name, cases in EMPTY.items() for arguments in cases]


@pytest.mark.parametrize(("name", "arguments"), CASES, ids=str)
def test_an_empty_list_is_refused_before_any_work(
    name: str, arguments: list[str], call: Call, tmp_path: Path
) -> None:
    kept = {}
    for file in ("cpu.csv", "cpu.json", "pareto.csv", "variance.csv", "allocation.csv"):
        path = tmp_path / "mine" / file
        path.parent.mkdir(exist_ok=True)
        path.write_text("precious\n")
        kept[path] = path.stat().st_mtime_ns
    output = "noise.output=mine" if name == "gradient_noise" else "output=mine"
    done = call(name, *arguments, output)
    assert (done.status, done.out, len(done.err.splitlines())) == (2, "", 1), done.err
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.fixture
def run(call: Call, tmp_path: Path) -> RunFolder:
    """A finished run of the experiment `toy`."""
    assert call("train", "variant=project", "experiment_name=toy", *TINY).status == 0
    (summary,) = tmp_path.rglob("summary.json")
    return RunFolder(summary.parent)


def test_a_half_cut_table_is_neither_plotted_nor_repeated(run: RunFolder, call: Call) -> None:
    whole = run.metrics_file.read_bytes()
    assert call("plot", "experiment=toy").status == 0
    run.metrics_file.write_bytes(whole[: len(whole) // 2])
    refused = call("plot", "experiment=toy")
    assert (refused.status, refused.out, len(refused.err.splitlines())) == (2, "", 1)
    assert re.search(
        r"metrics\.csv does not match its digest in summary\.json; restore that file, "
        r"or delete \S+ and run it again$",
        refused.err.strip(),
    )
    with pytest.raises(UsageError, match=r"metrics\.csv does not match"):
        repeat.main([str(run.path)])


@pytest.mark.parametrize("text", ["{}", "[]", '{"variant": "project"}', ""])
def test_any_json_is_no_finished_run(
    text: str, run: RunFolder, call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    before = json.loads(run.summary_file.read_text())
    run.summary_file.write_text(text)
    refused = call("plot", "experiment=toy")
    assert (refused.status, len(refused.err.splitlines())) == (2, 1)
    assert "summary.json" in refused.err
    assert "restore that file" in refused.err
    # The checkpoint brings it back, with a word; without one nothing is trained over it.
    arguments = ("variant=project", "experiment_name=toy", *TINY)
    again = call("train", *arguments)
    assert again.status == 0
    assert "the run ends again from its checkpoint" in again.err
    after = json.loads(run.summary_file.read_text())
    for name in ("final", "iterations", "digests"):
        assert after[name] == before[name]
    run.summary_file.write_text(text)
    run.checkpoint_file.unlink()
    rows = run.metrics_file.read_bytes()
    refused = call("train", *arguments)
    assert (refused.status, len(refused.err.splitlines())) == (2, 1)
    assert "restore that file, or delete" in refused.err
    assert run.metrics_file.read_bytes() == rows


def test_a_config_that_is_none(run: RunFolder) -> None:
    """Of a run that has no digest of it."""
    summary = {k: v for k, v in run.summary().items() if k not in ("digests", "sha256")}
    run.summary_file.write_text(json.dumps(summary))
    assert run.finished()
    for text in ("[1, 2", "3", "a: ${b", "\0"):
        run.config_file.write_text(text)
        with pytest.raises(UsageError, match=r"config\.yaml") as raised:
            repeat.main([str(run.path)])
        assert "\n" not in str(raised.value)


def test_a_resumed_run_lists_its_segments(call: Call, tmp_path: Path) -> None:
    limited = (*TINY, "training.time_limit=1e-9", "training.strict_resume=true")
    while not list(tmp_path.rglob("summary.json")):
        assert call("train", "variant=project", *limited).status == 0
    (file,) = tmp_path.rglob("summary.json")
    summary = json.loads(file.read_text())
    first, *others = summary["segments"]
    assert (first["from"], first["commit"]) == (0, summary["commit"])
    assert [list(segment) for segment in others] == [["from"]] * len(others)
    assert others
    assert set(summary["digests"]) == {"data", "metrics.csv", "config.yaml"}
    assert not (file.parent / "checkpoint.previous.pt").exists()
    assert "strict_resume" not in str(file) + file.with_name("config.yaml").read_text()


def test_a_damaged_table_of_noise_is_not_drawn(call: Call, tmp_path: Path) -> None:
    file = write_table(tmp_path / "feedforward_mnist.csv", pd.DataFrame({"a": [1.5, 2.5]}), {})
    file.write_text(file.read_text().replace("1.5", "1.7"))
    done = call("gradient_noise", "noise.measure=false", f"noise.output={tmp_path}")
    assert (done.status, len(done.err.splitlines())) == (2, 1)
    assert "does not match its digest in feedforward_mnist.json" in done.err
    assert "noise.measure=true" in done.err


def test_a_run_of_another_program_is_refused(run: RunFolder, call: Call) -> None:
    for script, arguments in (
        ("pde_variance", [f"trained='{run.path}'"]),
        ("plot_pde", ["experiment=toy"]),
    ):
        done = call(script, *arguments)
        assert (done.status, len(done.err.splitlines())) == (2, 1), done.err


def test_losses_of_a_damaged_run_are_not_left_out(run: RunFolder, tmp_path: Path) -> None:
    """An experiment without runs is passed over, one with a damaged run is not."""
    known = Known(0.1, ["absent", "toy"], None, "train_loss", None, None)  # type: ignore[arg-type]
    assert known_losses(tmp_path / "results", known).keys() <= {"project"}
    run.metrics_file.write_bytes(run.metrics_file.read_bytes()[:-1])
    with pytest.raises(UsageError, match=r"metrics\.csv does not match"):
        known_losses(tmp_path / "results", known)


def test_a_measurement_that_breaks_off_leaves_the_table_that_there_was(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "mine"
    whole = write_table(folder / "cpu.csv", pd.DataFrame({"model": ["a", "b", "c"]}), {})
    before = whole.read_bytes()
    calls: list[str] = []

    def rows(made: str, *_: object) -> list[dict[str, str]]:
        calls.append(made)
        if len(calls) == 2:
            raise UsageError("out of something")
        return [{"program": "torch"}]

    monkeypatch.setattr(model_zoo, "specimen", lambda name, *_: name)
    monkeypatch.setattr(model_zoo, "zoo_rows", rows)
    arguments = ("models=[gpt2,bert]", "programs=[torch]", "output=mine")
    assert call("model_zoo", *arguments).status == 2
    assert whole.read_bytes() == before
    assert pd.read_csv(folder / "cpu.partial.csv")["model"].tolist() == ["gpt2"]
    assert call("model_zoo", *arguments).status == 0
    assert pd.read_csv(whole)["model"].tolist() == ["gpt2", "bert"]
    assert sorted(file.name for file in folder.iterdir()) == ["cpu.csv", "cpu.json"]
