"""How numbers are printed, what counts as traced, and what a table of settings takes in."""

import json
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from rad.errors import UsageError
from rad.pages.blocks import Page
from rad.pages.commits import lost_commits
from rad.pages.figure import SHOWN, headline_figure
from rad.pages.measured import Measured
from rad.pages.runs import Runs
from rad.pages.settings import settings_of, settings_table
from rad.pages.untraced import untraced
from rad.pages.words import cell, significant, spread, whole
from rad.schema.rules import Named, Whole


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([8.07e-07, 8.13e-07], "8.10e-07 ± 4e-09"),
        ([8.0e-07, 9.0e-07], "8.5e-07 ± 7e-08"),
        ([0.0056, 0.0068], "0.0062 ± 0.0008"),
        ([1.000, 1.024], "1.012 ± 0.017"),
        ([0.97749, 0.97751], "0.9775"),
        ([98.16, 98.28], "98.22 ± 0.08"),
        ([0.0999, 0.1001], "0.1000 ± 0.0001"),
        ([1234.0], "1,234"),
        ([0.5, 0.5], "0.5000"),
    ],
)
def test_mean_and_deviation_are_rounded_once(values: list[float], text: str) -> None:
    assert spread(values) == text


def test_numbers_of_measurements() -> None:
    assert [significant(each) for each in (1, 71.04, 0.126, 8.52e-07, 0)] == [
        *("1.00", "71.0", "0.126", "8.52e-07", "0"),
    ]
    assert [cell("saved_bytes", 125511), cell("time_ratio", 0.706)] == ["0.126 MB", "0.71x"]
    assert [cell("steps", 784.0), cell("total", float("nan"))] == ["784", "-"]
    assert [whole([3, 3]), whole([1600, 3200])] == ["3", "1,600 to 3,200"]


def test_a_measured_number_is_traced_to_a_file_that_the_page_cites(tmp_path: Path) -> None:
    folder = tmp_path / "speed"
    folder.mkdir()
    pd.DataFrame({"time_ratio": [0.7061], "saved_bytes": [125511]}).to_csv(folder / "cpu.csv")
    text = "It takes 0.71 and keeps 125,511 bytes, 0.126 MB, not 0.72; 1.5e-3 is set."
    cited = f"{text} [here](../results/speed) <!-- given: 1.5e-3 -->"
    assert untraced(cited, tmp_path) == ["0.72"]
    assert untraced(text, tmp_path) == ["0.71", "125,511", "0.126", "0.72", "1.5e-3"]
    assert untraced("`0.72` and 12 of 25\n```\n0.72\n```\n", tmp_path) == []


def test_rows_that_are_not_there_are_refused(tmp_path: Path) -> None:
    pd.DataFrame({"program": ["torch"], "time": [1.0]}).to_csv(tmp_path / "cpu.csv", index=False)
    measured = Measured(tmp_path)
    assert measured.value("cpu", "time", "program == 'torch'") == 1.0
    with pytest.raises(UsageError, match="has no row where program == 'rad'"):
        measured.value("cpu", "time", "program == 'rad'")
    with pytest.raises(UsageError, match=r"none\.csv"):
        measured.value("none", "time")


def test_settings_have_default_rule_and_comment(tmp_path: Path) -> None:
    file = tmp_path / "train.yaml"
    file.write_text(
        "# All settings.\ndefaults:\n  - model: big\n\n# Drawn from it.\nseed: 0\n"
        "training:\n  # In <iterations>.\n  every: ${scales.x}\nhydra:\n  run: {}\n"
    )
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "big.yaml").write_text("name: big\n# Units.\nwidth: 3\n")
    assert [each.key for each in settings_of(file)] == ["seed", "training.every"]
    rules = {
        "seed": Whole(0),
        "training": {"every": Whole()},
        "model": Named({"big": {"width": Whole()}}),
    }
    assert settings_table(file, rules, ("model",)).splitlines()[2:] == [
        "| `seed` | `0` | a whole number of at least 0 | Drawn from it. |",
        "| `training.every` | of the experiment or data set | a whole number of at least 1 "
        "| In &lt;iterations>. |",
        "| `model` | `big` | `big` | a group: one file of settings |",
        "| `model.width` | `3` | a whole number of at least 1 | with `model=big`: Units. |",
    ]
    with pytest.raises(UsageError, match=r"training\.every has no rule"):
        settings_table(file, {"seed": Whole(0), "training": {}})


def test_a_commit_that_is_not_in_the_history_has_to_be_named(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        who = ("-c", "user.name=x", "-c", "user.email=x@x")
        done = subprocess.run(["git", "-C", str(tmp_path), *who, *words], capture_output=True)
        return done.stdout.decode().strip()

    for name, commit in (("there", "HEAD"), ("lost", "8" * 40), ("plain", None)):
        file = tmp_path / "results" / name / "cpu.json"
        file.parent.mkdir(parents=True)
        if commit == "HEAD":
            git("init", "-q")
            git("commit", "-q", "--allow-empty", "-m", "x")
            commit = git("rev-parse", "HEAD") + "-dirty"
        file.write_text(json.dumps({"commit": commit}))
    (line,) = lost_commits(tmp_path, "nothing")
    assert line == f"results/lost names {'8' * 40}, not in the history"
    assert lost_commits(tmp_path, "results/lost names 8888888.") == []
    assert lost_commits(tmp_path, "8888888") == [line]
    assert lost_commits(tmp_path / "results" / "none", "") == []
    file.write_text("{")
    with pytest.raises(UsageError, match=r"cpu\.json is no JSON .*; restore it"):
        lost_commits(tmp_path, "8888888")


def test_the_figure_has_a_marker_at_each_mean() -> None:
    runs = Runs(Path(__file__).resolve().parents[2] / "results")
    (axes,) = headline_figure(runs).axes
    drawn = [bars.lines[0].get_xydata()[0].tolist() for bars in axes.containers]
    assert drawn == [
        [runs.of(source)["memory.saved_bytes"].mean(), runs.final(source)] for source, *_ in SHOWN
    ]
    assert {text.get_text() for text in axes.texts} == {label for _, label, *_ in SHOWN}


@pytest.mark.parametrize(
    "text",
    [
        "<!-- table: one() -->\nkept\n<!-- table: two() -->\n<!-- end -->\n",
        "<!-- table: one() -->\nkept\n",
        "about 3 <!--= one() -->",
        "1.0 <!--~ one() -->",
    ],
)
def test_a_comment_that_cannot_be_read_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "page.md"
    file.write_text(text)
    page = Page(file, {"one": lambda: "1", "two": lambda: "2"})
    with pytest.raises(UsageError, match="one cannot be read"):
        page.made()


def test_figures_are_paired_by_seed_where_each_has_one_run() -> None:
    runs = Runs(Path(__file__).resolve().parents[2] / "results")
    project, full = "fractions_mnist/project/*", "fractions_mnist/baseline/*"
    with pytest.raises(UsageError, match="several runs of one seed"):
        runs.interval(project, full)
    assert runs.ratio("fractions_mnist/project/budget=0.1", full) != "1.00"


def test_time_to_full_memorys_loss_is_over_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def curves(self: Runs, source: str) -> pd.DataFrame:
        losses, each = {
            "full": ([4.0, 3.0, 2.0, 1.0, 0.9, 0.8], 2.0),
            "slower": ([4.0, 3.5, 2.5, 0.9, 0.9, 0.8], 3.0),
            "worse": ([4.0, 3.5, 2.5, 2.0, 1.9, 1.8], 1.0),
        }[source]
        seconds = [each * n for n in range(6)]
        rows = {"seed": 0, "iteration": range(6), "seconds": seconds, "test_loss": losses}
        return pd.DataFrame(rows)

    monkeypatch.setattr(Runs, "curves", curves)
    runs = Runs(tmp_path)
    assert runs.reach("slower", "full") == f"{9 / 8:.2f}x"  # at row 3, where full is at row 4
    assert runs.reach("slower", "full", share=1.0) == "1.50x"
    assert runs.reach("worse", "full") == "reached by 0 of 1"
