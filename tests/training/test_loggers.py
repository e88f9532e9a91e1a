"""Loggers and the progress bar."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rad.errors import UsageError
from rad.training import WandbLogger
from rad.training.progress_bar import ProgressBar, memory_in_use


def test_disabled_does_not_import_wandb() -> None:
    program = (
        "import sys; from rad.training import WandbLogger\n"
        "logger = WandbLogger('p', 'n', mode='disabled')\n"
        "logger.log({'iteration': 0}); logger.finish(); sys.exit('wandb' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_unknown_mode() -> None:
    with pytest.raises(UsageError, match="online, offline, disabled"):
        WandbLogger("p", "n", mode="loud")


def test_offline_records_locally_under_a_lasting_id(tmp_path: Path) -> None:
    folders = []
    for _ in range(2):
        logger = WandbLogger(
            "rad", "fig5b/project/budget=0.1/seed=0", "fig5b", {"seed": 0}, "offline", tmp_path
        )
        logger.log({"iteration": 0, "train_loss": 2.3, "batch_loss": None})
        logger.finish()
        logger.finish()
        folders = sorted(tmp_path.glob("wandb/offline-run-*"))
        assert folders
        assert list(folders[-1].glob("*.wandb"))
    identifiers = {
        folder.name.split("-")[3] for folder in folders
    }  # a second one in the same second ends in -1
    assert len(identifiers) == 1


def test_memory_in_use_sees_an_allocation() -> None:
    before = memory_in_use(torch.device("cpu"))
    block = torch.ones(50_000_000, dtype=torch.uint8)
    assert 40e6 < memory_in_use(torch.device("cpu")) - before < 80e6
    del block


def test_bar_is_silent_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    bar = ProgressBar(10, 2, torch.device("cpu"))
    bar.show(5, 0.25)
    bar.close()
    assert capsys.readouterr().err == ""


def test_bar_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    bar = ProgressBar(10, 2, torch.device("cpu"))
    bar.show(10, 0.25)
    bar.close()
    shown = capsys.readouterr().err
    for part in ("10/10", "loss=0.2500", " MB", "it/s"):
        assert part in shown


@pytest.mark.parametrize("installed", [True, False])
def test_a_line_about_a_run_is_told_with_tqdm_and_without(
    installed: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not installed:
        monkeypatch.setitem(sys.modules, "tqdm", None)
    bar = ProgressBar(10, 2, torch.device("cpu"))
    bar.tell(Path("results/run"), "no graph")
    bar.close()
    assert capsys.readouterr().err.strip().splitlines()[-1] == "results/run: no graph"
