"""Parallel launchers, in processes of their own."""

import json
import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import train
from _run_spec import read
from _spec import device_of
from calling import SCRIPTS, Call, interruptible
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException
from hydra.types import RunMode
from hydra_plugins.checked_sweeper import _Composed
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError

from rad.errors import UsageError
from rad.processes import refusals

TINY = ("model.hidden=[6]", "training.evaluate_every=500", "logger.mode=disabled")


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    command = [sys.executable, str(SCRIPTS / "train.py"), "-m", *TINY, *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command,
        cwd=folder,
        text=True,
        stdout=pipe,
        stderr=pipe,
        preexec_fn=interruptible,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def finished(folder: Path) -> dict[Path, int]:
    return {file: file.stat().st_mtime_ns for file in folder.rglob("summary.json")}


def test_an_interrupted_parallel_sweep_finishes_what_is_missing(tmp_path: Path) -> None:
    sweep = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "optimizer.iterations=800")
    sweep += ("variant=same_sample", "seed=0,1,2")
    first = start(tmp_path, *sweep)
    while not finished(tmp_path) and first.poll() is None:
        time.sleep(0.01)
    os.killpg(first.pid, signal.SIGINT)
    first.communicate()
    assert first.returncode == 130
    before = finished(tmp_path)
    assert 0 < len(before) < 3
    second = start(tmp_path, *sweep)
    out, err = second.communicate()
    assert second.returncode == 0, err
    assert out.count("skipped") == len(before)
    after = finished(tmp_path)
    assert len(after) == 3
    assert {file: after[file] for file in before} == before


FEW = ("optimizer.iterations=20", "variant=same_sample")


def test_parallel_runs_name_the_command_and_a_bad_one_ends_in_one_line(tmp_path: Path) -> None:
    parallel = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "runs_per_process=2")
    done = start(tmp_path, *FEW, *parallel, "seed=0,1,2", "budget=0.2,2000")
    _, err = done.communicate()
    assert done.returncode == 2
    summaries = [json.loads(file.read_text()) for file in finished(tmp_path)]
    assert len(summaries) == 3
    for summary in summaries:
        assert summary["command"].startswith("python scripts/train.py -m")
        assert "budget=0.2,2000" in summary["command"]
    lines = err.splitlines()
    assert len(lines) == 3
    for line in lines:
        assert line.startswith("error: ")
        assert "budget=2000" in line
        assert "too small" in line


def test_a_job_of_a_cluster_names_the_command_and_a_bad_one_ends_in_one_line(
    tmp_path: Path,
) -> None:
    done = start(tmp_path, "hydra/launcher=submitit_local", *FEW, "budget=2000,0.2")
    _, err = done.communicate()
    assert done.returncode == 2, err
    (line,) = err.splitlines()
    assert line.startswith("error: budget=2000: ")
    (summary,) = finished(tmp_path)
    command = json.loads(summary.read_text())["command"]
    assert command.startswith("python scripts/train.py -m")
    assert "budget=2000,0.2" in command


def test_jobs_that_differ_in_values_are_composed_once(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    composed, compose = [], ConfigLoaderImpl.load_sweep_config

    def counted(self: ConfigLoaderImpl, config: DictConfig, overrides: list[str]) -> DictConfig:
        composed.append(next(each for each in overrides if each.startswith("variant=")))
        return compose(self, config, overrides)

    monkeypatch.setattr(ConfigLoaderImpl, "load_sweep_config", counted)
    tiny = ("model.hidden=[6]", "optimizer.iterations=2", "training.evaluate_every=2")
    assert call("train", "-m", *tiny, "variant=baseline,project", "seed=0,1").status == 0
    assert composed == ["variant=baseline", "variant=project"]


JOBS = (
    ["seed=1", "model.hidden=[6]", "budget=0.1", "hydra.sweeper.jobs=3"],
    ["seed=2", "model.hidden=[6,7]", "budget=9kB", "hydra.sweeper.jobs=4"],
    ["seed=3", "model.hidden=null", "budget='0.1'", "hydra.sweeper.jobs=3"],
    ["seed=1", "+experiment=fig5b_mnist", "scale=smoke", "budget=0.1"],
    ["seed=2", "+experiment=fig5b_mnist", "scale=null", "budget=${seed}"],
    ["seed=2", "+model.more=1", "budget=0.1", "model={hidden:[5]}"],
    ["seed=3", "+model.more=2", "budget=0.1", "model={hidden:[7]}"],
    ["seed=3", "+model.more=2", "~budget", "experiment_name=a", "experiment_name=b"],
    ["seed=4", "+model.more=2", "~budget", "experiment_name=c", "experiment_name=d"],
)


def test_a_copy_with_other_values_is_what_hydra_composes(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    with initialize_config_dir(str(SCRIPTS.parent / "configs/train"), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        hydras = ["hydra.job.chdir=false"]
        master = loader.load_configuration("train", hydras, RunMode.MULTIRUN)
        expected = [loader.load_sweep_config(master, job) for job in JOBS]
        compose = loader.load_sweep_config
        monkeypatch.setattr(
            loader, "load_sweep_config", lambda *given: seen.append(1) or compose(*given)
        )
        copying = _Composed(loader)
        for _ in range(2):
            for job, config in zip(JOBS, expected, strict=True):
                found = copying.load_sweep_config(master, job)
                assert OmegaConf.to_container(found) == OmegaConf.to_container(config)
                with pytest.raises(ConfigAttributeError):
                    found.no_such_setting = 1
        assert len(seen) == 5
        with pytest.raises(ConfigCompositionException):
            copying.load_sweep_config(master, ["seed=1", "experiment_name=[1]", "no_such=3"])


@pytest.mark.parametrize(
    ("launcher", "device", "devices"),
    [("joblib", "auto", [0, 1, 0]), ("joblib", "cuda:1", [1] * 3), ("basic", "cuda", [0] * 3)],
)
def test_jobs_that_run_at_a_time_take_gpus_in_turn(
    launcher: str,
    device: str,
    devices: list[int],
    call: Call,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found: list[torch.device] = []

    def main(config: DictConfig, overrides: list[str]) -> None:
        found.append(read(config, overrides).device)

    monkeypatch.setattr(train, "main", main)
    monkeypatch.setattr(train, "after", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    chosen = (f"hydra/launcher={launcher}", f"device={device}", "seed=0,1,2")
    alone = ("hydra.launcher.n_jobs=1",) if launcher == "joblib" else ()
    assert call("train", "-m", *TINY, *chosen, *alone).status == 0
    assert found == [torch.device("cuda", index) for index in devices]


def test_processes_of_one_run_take_a_gpu_each(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    given = {"RANK": 1, "LOCAL_RANK": 1, "WORLD_SIZE": 3, "LOCAL_WORLD_SIZE": 2}
    given |= {"MASTER_ADDR": 1, "MASTER_PORT": 1}
    for name, value in given.items():
        monkeypatch.setenv(name, str(value))
    config = OmegaConf.create({"device": "auto"})
    assert device_of(config) == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(UsageError, match="3 processes need a CUDA device each"):
        device_of(config)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(refusals, "PATIENCE", timedelta(seconds=1))  # the other two never come
    refused = call("train", *TINY, "training.parallel=ddp", "device=cuda:1")
    assert refused.status == 2
    (line,) = refused.err.splitlines()
    assert line.startswith("error: 3 processes need a CUDA device each, and device=cuda:1")
