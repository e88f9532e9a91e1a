"""What the README shows is what happens."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch.nn.functional as F

import rad

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
COMMANDS = [
    line
    for kind, block in BLOCKS
    if not kind
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("python ")
]


def test_the_python_example_prints_the_bytes_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = [block for kind, block in BLOCKS if kind == "python"]
    made: dict[str, Any] = {}
    exec(compile(example, "README.md", "exec"), made)
    (promised,) = re.findall(r"# (\d+), not \d+$", example, re.MULTILINE)
    assert capsys.readouterr().out.splitlines()[-1] == promised
    model, x, y = (made[name] for name in ("model", "x", "y"))
    audit = str(rad.audit(model, lambda: F.cross_entropy(model(x), y)))
    (shown,) = [block for _, block in BLOCKS if "in all" in block]
    peak = re.compile(r"backward [\d,]+")  # torch's own part of it depends on the machine
    assert peak.sub("", audit) == peak.sub("", shown.strip())


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_name_scripts_and_settings_that_exist(command: str) -> None:
    _, script, *arguments = shlex.split(command, comments=True)
    assert (ROOT / script).is_file()
    entry = r'run\(_cli.Script\([\w, ]*\), "([\w/]+)"(?:, _cli.CONFIGS / "(\w+)")?\)'
    found = re.search(entry, (ROOT / script).read_text())
    if script == "scripts/repeat.py":
        assert (ROOT / arguments[0] / "summary.json").is_file()
        return
    if script == "scripts/gpu.py":  # its own parser
        done = subprocess.run([sys.executable, script, *arguments, "--dry-run"], cwd=ROOT)
        assert done.returncode == 0
        return
    assert found is not None
    name, folder = found[1], ROOT / "configs" / (found[2] or "")
    overrides = [re.sub(r"=([^,\[\]]*),.*", r"=\1", a) for a in arguments if a != "-m"]
    with hydra.initialize_config_dir(str(folder), version_base="1.3"):
        hydra.compose(name, overrides)


def test_links_and_figures_exist() -> None:
    targets = re.findall(r"\]\(([^)#:]+)\)", README)
    assert len(targets) > 10
    assert [target for target in targets if not (ROOT / target).exists()] == []
