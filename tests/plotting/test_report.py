"""The page of runs, opened and clicked through in a headless browser."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from browser import PROGRAM, Browser

from rad.plotting.report import collect, page, there
from rad.results import NoRuns, RunFolder

ROWS = [{"iteration": 10 * n, "seconds": float(n), "train_loss": 2.0**-n} for n in range(4)]
CHECK = "document.querySelector('#{group} input[value=\"{value}\"]').click()"
CHOOSE = "(e => {{ e.value = '{value}'; e.dispatchEvent(new Event('change', {{bubbles: true}})) }})"
CHOOSE += "(document.getElementById('{name}'))"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two experiments: three variants with two seeds, and one with one."""
    results = tmp_path / "results"
    for experiment, variants in (
        ("fig1", ("baseline", "project", "</script>")),
        ("other", ("auto",)),
    ):
        for place, variant in enumerate(variants):
            for seed in (0, 1) if experiment == "fig1" else (0,):
                folder = RunFolder(
                    results / experiment / str(place) / "budget=0.1" / f"seed={seed}"
                )
                folder.path.mkdir(parents=True)
                rows = [{**row, "train_loss": row["train_loss"] + seed} for row in ROWS]
                folder.write_metrics(rows, list(ROWS[0]))
                memory = {"parameter_bytes": 5, "saved_bytes": 100 * (place + 1), "peak_bytes": 9}
                final = {"train_loss": rows[-1]["train_loss"]}
                fields = {"variant": variant, "seed": seed, "budget": "0.1", "batch_size": 7}
                more = {"keep_fraction": 0.1, "bits": None, "memory": memory, "final": final}
                folder.write_summary({**fields, **more, "device": "a machine"})
    return results


def test_runs_are_collected_with_their_rows(root: Path) -> None:
    assert there(root) == ["fig1", "other"]
    runs = collect(root)
    assert [(run["variant"], run["seed"]) for run in runs[:3]] == [
        ("baseline", 0),
        ("baseline", 1),
        ("project", 0),
    ]
    assert runs[0]["columns"]["train_loss"] == [1, 0.5, 0.25, 0.125]
    assert len(collect(root, ["other"])) == 1
    with pytest.raises(NoRuns):
        collect(root, ["absent"])
    with pytest.raises(NoRuns):
        collect(root / "absent")


def test_the_page_needs_nothing_else(root: Path) -> None:
    text = page(collect(root), "All <runs>")
    assert "<title>All &lt;runs&gt;</title>" in text
    assert text.count("</script>") == 3  # a variant of that name closes none
    data = text.split('type="application/json">')[1].split("</script>")[0]
    assert len(json.loads(data)["runs"]) == 7


@pytest.mark.skipif(PROGRAM is None, reason="Chromium is not installed")
def test_the_page_in_a_browser(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(page(collect(root)))
    with Browser(tmp_path / "profile") as browser:
        browser.open(file)

        def lines() -> list[str]:
            names = "document.getElementById('plot').data.filter(t => t.showlegend !== false)"
            found: list[str] = browser.run(f"{names}.map(t => t.name)")
            return found

        def rows() -> int:
            count: int = browser.run("document.querySelectorAll('#table tbody tr').length")
            return count

        assert lines() == ["baseline 0.1", "project 0.1", "</script> 0.1"]
        mean = browser.run("document.getElementById('plot').data.filter(t => t.hovertemplate)[0].y")
        assert mean == [1.5, 1.0, 0.75, 0.625]
        browser.run(CHECK.format(group="variant", value="project"))
        assert lines() == ["baseline 0.1", "</script> 0.1"]
        browser.run(CHECK.format(group="experiment", value="other"))
        assert "auto 0.1 (other)" in lines()
        browser.run(CHECK.format(group="seed", value="0"))
        assert lines() == ["baseline 0.1 (fig1)", "</script> 0.1 (fig1)"]
        browser.run(CHECK.format(group="seed", value="0"))
        browser.run(CHOOSE.format(name="x", value="seconds"))
        assert browser.run("document.getElementById('plot').data.at(-1).x") == [0, 1, 2, 3]
        browser.run(CHOOSE.format(name="x", value="saved"))
        points = "document.getElementById('plot').data.map(t => [t.x[0], t.y[0]])"
        assert browser.run(points)[0] == [100, 0.625]
        assert rows() == 3
        browser.run("document.getElementById('single').click()")
        assert rows() == 5
        headings = "[...document.querySelectorAll('#table th')]"
        browser.run(f"{headings}.find(t => t.textContent === 'training loss').click()")
        first = "document.querySelector('#table tbody tr').children[1].textContent"
        assert browser.run(first) == "baseline"
        browser.run(f"{headings}.find(t => t.textContent.startsWith('training loss')).click()")
        assert browser.run("document.querySelectorAll('#table tbody td')[9].textContent") == "1.13"
        assert "a machine" in browser.run("document.getElementById('plot').data[0].hovertemplate")
        browser.picture(tmp_path / "seen.png")
        assert (tmp_path / "seen.png").stat().st_size > 20_000
        assert browser.problems == []
        assert [url for url in browser.requests if not url.startswith("file:")] == []
