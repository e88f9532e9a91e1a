import json
import sys
from pathlib import Path

import pandas as pd
import path_sampling
import pytest
from _cli import CONFIGS, Script, run
from calling import SCRIPTS

TINY = ("settings=[[4,2]]", "depths=[1,3]", "measured_depths=[1]", "draws=2")


def call(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [str(SCRIPTS / "path_sampling.py"), *arguments])
    run(Script(path_sampling.main), "path_sampling", CONFIGS / "measure")


def test_both_figures_and_their_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call(monkeypatch, tmp_path, *TINY)
    table = pd.read_csv(tmp_path / "results/path_sampling/variance.csv")
    assert list(zip(table["depth"], table["draws"].fillna(0), strict=True))[::4] == [(1, 2), (3, 0)]
    interleaved = table[table["graph"] == "interleaved"]
    assert interleaved["exact"].tolist() == pytest.approx([1.5, 2.5**3 - 1])
    assert "commit" in json.loads((tmp_path / "results/path_sampling/variance.json").read_text())
    drawn = {file.name for file in (tmp_path / "plots").iterdir()}
    assert drawn == {"figure1.pdf", "figure1.png", "figure2.pdf", "figure2.png"}


@pytest.mark.parametrize(
    "bad", ["settings=[[6,2]]", "settings=[3]", "depths=[]", "depths=[x]", "draws=1", "colour=red"]
)
def test_bad_input_ends_in_one_line(
    bad: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, tmp_path, *TINY, bad)
    assert stop.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not list(tmp_path.iterdir())
