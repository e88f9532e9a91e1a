"""What README and docs show is what happens: examples, commands, links and numbers."""

import re
import shlex
from pathlib import Path
from typing import Any

import _cli
import claims
import hydra
import pytest
import reproduce
import torch.nn.functional as F

import rad
from rad.errors import UsageError
from rad.pages import Page, namespace, untraced
from rad.pages.reproduction import REPRODUCTIONS, reproduction
from rad.pages.settings import tables
from rad.pages.site import mended
from rad.processes.signals import Stopped, stopping

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
CALLS = namespace(ROOT / "results", **tables(ROOT / "configs"))


def name_of(file: Path) -> str:
    return str(file.relative_to(ROOT))


def blocks(file: Path) -> list[tuple[str, str]]:
    return BLOCK.findall(file.read_text())


def commands() -> list[str]:
    """Every `python scripts/...` of a code block or of a code span, once."""
    found = []
    for file in PAGES:
        for kind, block in blocks(file):
            if not kind:
                found += block.replace("\\\n", " ").splitlines()
        found += re.findall(r"`(python scripts/[^`<]+)`", BLOCK.sub("", file.read_text()))
    kept = (" ".join(line.split()) for line in found)
    return sorted({line for line in kept if line.startswith("python scripts/")})


def test_readme_is_one_screen() -> None:
    assert len(README.read_text().splitlines()) <= 160


@pytest.mark.parametrize("file", [README, ROOT / "docs" / "own_model.md"], ids=name_of)
def test_the_python_example_prints_the_bytes_it_says(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (example,) = [block for kind, block in blocks(file) if kind == "python"]
    made: dict[str, Any] = {}
    exec(compile(example, str(file), "exec"), made)
    (promised,) = re.findall(r"# (\d+), not \d+$", example, re.MULTILINE)
    assert capsys.readouterr().out.splitlines()[-1] == promised
    model, x, y = (made[name] for name in ("model", "x", "y"))
    audit = str(rad.audit(model, lambda: F.cross_entropy(model(x), y)))
    peak = re.compile(r"backward [\d,]+")  # torch's own part of it depends on the machine
    for _, shown in blocks(file):
        if "in all" in shown:
            assert peak.sub("", audit) == peak.sub("", shown.strip())


@pytest.mark.parametrize("command", commands())
def test_commands_name_scripts_and_settings_that_exist(command: str) -> None:
    _, script, *arguments = shlex.split(command, comments=True)
    composes(script, arguments)


@pytest.mark.parametrize("name", [each.name for each in REPRODUCTIONS])
def test_what_reproduces_a_figure_can_be_run(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert reproduce.main([name, "--dry-run", "--results", "elsewhere"]) == 0
    said, *lines = capsys.readouterr().out.splitlines()
    assert "a committed result is in results/" in said
    for line in lines + shortened(name):
        _, script, *arguments = shlex.split(line)
        assert any("=elsewhere" in argument for argument in arguments)
        composes(script, arguments)


def shortened(name: str) -> list[str]:
    """The same commands at smoke scale, where there are scales."""
    wanted = reproduction(name)
    return wanted.lines("elsewhere", "smoke") if wanted.scale else []


def composes(script: str, arguments: list[str]) -> None:
    """Scripts with a parser take the arguments, and Hydra's settings are there."""
    assert (ROOT / script).is_file()
    text = (ROOT / script).read_text()
    entry = re.search(r'Script\([\w, ]*\), "([\w/]+)", _cli.CONFIGS / "(\w+)"\)', text)
    if entry is None:
        assert "_parser()" in text
        if script == "scripts/repeat.py" and arguments[0] != "FOLDER":
            assert (ROOT / arguments[0] / "summary.json").is_file()
        return
    if any(argument.startswith("-") and argument != "-m" for argument in arguments):
        return  # Hydra's own options
    overrides = [re.sub(r"=([^,\[\]]*),.*", r"=\1", each) for each in arguments if each != "-m"]
    folder = ROOT / "configs" / entry[2]
    overrides = [_cli.experiment_of(each, folder) for each in overrides]
    with hydra.initialize_config_dir(str(folder), version_base="1.3"):
        hydra.compose(entry[1], overrides)


@pytest.mark.parametrize("file", PAGES, ids=name_of)
def test_links_lead_somewhere(file: Path) -> None:
    assert broken(file.read_text(), file) == []


def broken(text: str, file: Path) -> list[str]:
    found = []
    for target in LINK.findall(BLOCK.sub("", text)):
        path, _, anchor = target.partition("#")
        if "://" in path or path.startswith("mailto:"):
            continue
        other = (file.parent / path).resolve() if path else file
        there = other.exists() and (not anchor or anchor in anchors(other))
        found += [] if there else [target]
    return found


def anchors(file: Path) -> set[str]:
    heads = re.findall(r"^#+ (.*)$", BLOCK.sub("", file.read_text()), re.MULTILINE)
    return {re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", head.lower()).strip()) for head in heads}


def test_a_broken_link_is_found() -> None:
    text = "[a](docs/none.md) [b](docs/any_model.md#none) [c](docs/any_model.md#recomputation)"
    assert broken(text, README) == ["docs/none.md", "docs/any_model.md#none"]


@pytest.mark.parametrize("file", PAGES, ids=name_of)
def test_numbers_are_those_of_the_results(file: Path) -> None:
    assert Page(file, CALLS).made() == file.read_text()
    assert untraced(file.read_text(), ROOT / "results") == []


def test_a_number_that_was_typed_wrongly_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    cited = "[here](../results/fig5b_mnist)"
    text = 'It ends at 0.0063<!--= final("fig5b_mnist/reduced_batch/*"):.2g -->, ' + cited
    page.write_text(text)
    assert claims.main(["--check", str(page)]) == 1
    assert page.read_text() == text
    assert "+It ends at 0.0062<!--" in capsys.readouterr().out
    assert claims.main([str(page)]) == 0
    assert "0.0062<!--" in page.read_text()
    page.write_text(
        f"It keeps 122,148 bytes, ends at 0.0471, from 0.1. {cited} <!-- given: 0.1 -->"
    )
    assert claims.main(["--check", str(page)]) == 1
    assert capsys.readouterr().out.strip().endswith("has 0.0471")
    page.write_text('<!-- table: training("no_such", columns="variant") -->\n<!-- end -->\n')
    with pytest.raises(UsageError, match=r"no finished run in .*no_such"):
        claims.main(["--check", str(page)])


def test_the_site_holds_what_it_links_to() -> None:
    text = "![a](../plots/pareto.png) [`rad/nn`](../rad/nn) [the code](../rad/nn) [b](speed.md)"
    assert mended(text, "memory.md") == (
        "![a](plots/pareto.png) `rad/nn` the code (`rad/nn`) [b](speed.md)"
    )
    assert mended("![a](../../plots/x.png)", "reproduce/fig6.md") == "![a](../plots/x.png)"


def test_the_package_has_a_page_without_links_into_the_repository() -> None:
    assert 'readme = "docs/package.md"' in (ROOT / "pyproject.toml").read_text()
    links = LINK.findall((ROOT / "docs" / "package.md").read_text())
    assert [link for link in links if not link.startswith("https://")] == []


def test_the_committed_results_are_no_place_to_reproduce_in() -> None:
    with pytest.raises(UsageError, match="folder of the committed results; name another"):
        reproduce.main(["5b", "--results", "results"])
    with pytest.raises(UsageError, match="no figure or table '9'; choose one of 1, 5a"):
        reproduce.main(["9"])
    with pytest.raises(UsageError, match="--results is 'my results'; use letters"):
        reproduce.main(["5b", "--results", "my results"])


def test_what_reproduces_a_figure_is_ended_with_the_command(tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    program = f"""
import os, pathlib, signal, sys, time
def end(*_): time.sleep(0.2); pathlib.Path({str(saved)!r}).touch(); sys.exit(143)
signal.signal(signal.SIGTERM, end)
os.kill(os.getppid(), signal.SIGTERM)
time.sleep(60)
"""
    with pytest.raises(Stopped), stopping():
        reproduce.run(["-c", program])
    assert saved.exists()
