"""scripts/gpu.py, rehearsed on the CPU in processes of its own."""

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import gpu
import numpy as np
import pandas as pd
import pytest
from calling import SCRIPTS, Call, home_of, interruptible
from hydra import compose, initialize_config_dir

RUNS = (
    "runs=[{experiment: quickstart, variants: [baseline, same_sample], budgets: [0.1],"
    " seeds: [0, 1], guess: 1}]"
)
REHEARSAL = ("device=cpu", "steps=[runs]", RUNS, "workers=2", "margin=0")
ABSENT = (
    *(
        "wandb",
        "sklearn",
        "optuna",
        "joblib",
        "tqdm",
        "networkx",
        "submitit",
        "pytest",
        "hypothesis",
    ),
    *("_pytest", "scipy", "hydra_joblib_launcher", "hydra_submitit_launcher"),
)
NOT_INSTALLED = f"""
from importlib.machinery import PathFinder

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if set(name.split(".")) & set({ABSENT}):
            return None
        return PathFinder.find_spec(name, path, target)

import sys
sys.meta_path = [Finder if finder is PathFinder else finder for finder in sys.meta_path]
"""
"""A sitecustomize.py with which an interpreter does not find those packages."""


def tiny_benchmark(rounds: int) -> str:
    return (
        "measurements={benchmarks: [{name: tiny, script: benchmark, seconds: 1, arguments:"
        " ['networks=[feedforward]', 'programs=[torch,lean_exact,different_sample]', batch_size=8,"
        f" high_water=false, 'rounds={{feedforward:{rounds}}}', output=results/gpu/tiny,"
        " figure=plots/tiny.png]}]}"
    )


def start(
    folder: Path, *arguments: str, script: Path = SCRIPTS / "gpu.py", **environment: str
) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, str(script), *REHEARSAL, *arguments],
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=interruptible,
        env=os.environ | {"RAD_COMMIT": "abc"} | environment,
    )


def rows(folder: Path) -> dict[str, pd.DataFrame]:
    return {
        str(file.relative_to(folder)): pd.read_csv(file).drop(columns="seconds")
        for file in sorted(folder.rglob("metrics.csv"))
    }


def wait_for(folder: Path, pattern: str, count: int, process: subprocess.Popen[str]) -> None:
    while len(list(folder.rglob(pattern))) < count and process.poll() is None:
        time.sleep(0.05)


def test_interrupted_it_ends_with_the_rows_of_unbroken_runs(tmp_path: Path, call: Call) -> None:
    variants = ("variant=same_sample", "budget=0.1", "seed=0,1")
    assert call("train", "-m", "+experiment=quickstart", *variants).status == 0
    two = (RUNS.replace("baseline, ", ""), "workers=1", "time_limit=300")

    broken = tmp_path / "broken"
    process = start(broken, *two, "--archive", "part.tar.gz")
    wait_for(broken, "summary.json", 1, process)
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode == 128 + signal.SIGINT
    assert (broken / "part.tar.gz").exists()
    assert len(list(broken.rglob("summary.json"))) == 1
    last = start(broken, *two, "--archive", "new.tar.gz")
    out, err = last.communicate()
    assert last.returncode == 0, err
    assert "2 of 2 jobs are finished" in out
    with tarfile.open(broken / "new.tar.gz") as tar:
        names = tar.getnames()
    assert sum(name.endswith("summary.json") for name in names) == 1
    assert not any("checkpoint" in name or ".lock" in name for name in names)
    found, expected = rows(broken / "results"), rows(tmp_path / "results")
    assert len(found) == 2
    assert found.keys() == expected.keys()
    for name, table in found.items():
        pd.testing.assert_frame_equal(table, expected[name])


def test_at_the_time_limit_it_stops_with_runs_left(tmp_path: Path) -> None:
    process = start(tmp_path / "short", "slice=1", "time_limit=8", "workers=1")
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert re.search(r"[0-3] of 4 jobs are finished; the same command goes on", out)


def test_a_listing_needs_no_gpu_and_touches_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert gpu.main(["--dry-run"]) == 0
    out = capsys.readouterr().out
    for line in (
        "to do     120 s (guess) tests",
        "(guess) largest_batch_convnet",
        "(guess) gradient_noise_convnet",
        "(guess) fig5a_cifar10 project 0.1 seed 2, 0/100000",
        "(guess) fig5c_seqmnist different_project 0.1 seed 0, 0/200000",
        "(guess) beyond_seqmnist dithered_rounding 0.1 seed 0, 0/200000",
    ):
        assert line in out
    assert "540 s, 8 side by side" in out.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_a_listing_says_what_is_skipped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert gpu.main(["--dry-run", "device=cpu", "steps=[tests]"]) == 0
    assert "skipped           tests: pytest is not installed" in capsys.readouterr().out


@pytest.mark.parametrize("wanted", [True, False])
def test_runs_replay_graphs_if_told_to(wanted: bool) -> None:
    settings = gpu.settings(["steps=[runs]", RUNS, f"cuda_graph={wanted}"])
    for job in gpu.jobs(settings, "cpu"):
        assert ("training.cuda_graph=true" in job.command) == wanted
        assert job.folder is not None
        assert "cuda_graph" not in str(job.folder)


def test_every_measurement_names_a_script_and_settings_that_exist() -> None:
    config = gpu.settings([])
    for job in gpu.jobs(gpu.settings(["steps=[benchmarks,table1,gradient_noise]"]), "cpu"):
        script, *arguments = job.command
        folder, name = home_of(Path(script).stem)
        with initialize_config_dir(str(folder), version_base="1.3"):
            composed = compose(name, arguments)
        assert composed.device == "cpu"
        output = composed.noise.output if "noise" in composed else composed.output
        assert output.startswith(f"{config.results_root}/gpu/")
    assert set(config.steps) == {"tests", *config.measurements, "runs"}


def test_a_benchmark_cut_off_leaves_nothing_half_done_and_runs_again(tmp_path: Path) -> None:
    measured = tmp_path / "results/gpu"
    long = tiny_benchmark(10**6)
    process = start(tmp_path, "steps=[benchmarks]", long, "time_limit=300")
    assert process.stdout is not None
    assert process.stdout.readline() == "tiny ...\n"
    time.sleep(4)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert not measured.exists()

    short = start(tmp_path, "steps=[benchmarks]", long, "time_limit=7")
    out, _ = short.communicate()
    assert "tiny: not finished in time" in out
    assert "0 of 1 jobs are finished" in out
    assert not measured.exists()

    last = start(tmp_path, "steps=[benchmarks]", tiny_benchmark(1), "time_limit=300")
    out, err = last.communicate()
    assert last.returncode == 0, out + err
    assert "1 of 1 jobs are finished" in out
    table = pd.read_csv(measured / "tiny/cpu.csv")
    assert list(table["program"]) == ["torch", "lean_exact", "different_sample"]
    assert "different_sample" in (measured / "tiny.txt").read_text()


def test_a_measurement_waits_where_too_little_time_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert gpu.main(["device=cpu", "steps=[table1]", "time_limit=60"]) == 0
    assert "table1: left for another call, takes about 40 s" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_an_unpacked_tree_runs_with_the_fewest_packages(tmp_path: Path) -> None:
    """No git, no installation, no tqdm, wandb, scikit-learn, pytest and so on."""
    tree, site, work = tmp_path / "tree", tmp_path / "site", tmp_path / "work"
    for name in ("rad", "scripts", "configs"):
        ignored = shutil.ignore_patterns("*.pyc")  # compiled loops are taken along
        shutil.copytree(SCRIPTS.parent / name, tree / name, ignore=ignored)
    site.mkdir()
    (site / "sitecustomize.py").write_text(NOT_INSTALLED)
    data = {
        f"{split}_{kind}": np.zeros((count, *shape), np.uint8)
        for split, count in (("train", 60_000), ("test", 10_000))
        for kind, shape in (("images", (1, 28, 28)), ("labels", ()))
    }
    np.savez_compressed(tmp_path / "mnist.npz", allow_pickle=False, **data)
    options = {"script": tree / "scripts/gpu.py", "PYTHONPATH": str(site)}
    check = f"import importlib.util as u; print([n for n in {ABSENT} if u.find_spec(n)])"
    found = subprocess.run(
        [sys.executable, "-c", check], env=os.environ | {"PYTHONPATH": str(site)}, text=True,
        capture_output=True,
    )  # fmt: skip
    assert found.stdout == "[]\n", found.stderr

    entry = "experiment: fig5b_mnist, variants: [project], budgets: [0.1], seeds: [0], guess: 1"
    given = (
        f"runs=[{{{entry}}}]",
        "scale=smoke",
        "steps=[tests,benchmarks,runs]",
        tiny_benchmark(1),
    )
    given += (f"data_root={tmp_path}", "time_limit=300", "tests_seconds=1")
    process = start(work, *given, **options)  # type: ignore[arg-type]
    out, err = process.communicate()
    assert process.returncode == 0, out + err
    assert "2 of 3 jobs are finished" in out
    skipped = work / "results/gpu/tests.skipped.txt"
    assert skipped.read_text() == "tests: skipped, pytest is not installed\n"
    for file in (
        "gpu/tiny/cpu.json",
        "fig5b_mnist/project/budget=0.1,scale=smoke/seed=0/summary.json",
    ):
        record = json.loads((work / "results" / file).read_text())
        assert record["commit"] == "abc"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["speed=3"], "'speed=3' is no setting.*time_limit"),
        (["workers"], "'workers' is no setting"),
        (["workers=0"], "workers is 0; give a whole number of at least 1"),
        (["steps=[dance]"], "unknown step 'dance'; choose among tests"),
        (["device=tpu"], "device is 'tpu'; give auto, cpu"),
    ],
)
def test_bad_settings_are_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(gpu.UsageError, match=message):
        gpu.main([*arguments, *(["device=cpu"] if "device" not in arguments[0] else [])])
