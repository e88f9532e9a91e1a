"""The examples run, and print what a newcomer is told to expect."""

import re
import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
GUIDE = (EXAMPLES / "README.md").read_text()


@pytest.mark.parametrize("name", ["tabular_mlp", "torchvision_resnet", "huggingface_gpt2"])
def test_it_saves_bytes_and_trains_like_torch(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "huggingface_gpt2":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        pytest.importorskip("transformers")
    runpy.run_path(str(EXAMPLES / f"{name}.py"))
    printed = capsys.readouterr().out
    bytes_of = dict(re.findall(r"^(torch|RAD): ([\d,]+) bytes", printed, re.MULTILINE))
    saved = {who: int(number.replace(",", "")) for who, number in bytes_of.items()}
    assert saved["RAD"] < 0.3 * saved["torch"]
    (row,) = re.findall(rf"^\| \[{name}\.py\].*$", GUIDE, re.MULTILINE)
    promised = [cell.strip() for cell in row.split("|")[3:5]]
    assert bytes_of["torch"] == promised[0]
    if name == "torchvision_resnet":  # predicted errors choose what each layer keeps
        assert saved["RAD"] <= saved["torch"] / 5
    else:
        assert bytes_of["RAD"] == promised[1]
    losses = re.findall(r"^ *\d+  (\d+\.\d+)  (\d+\.\d+)$", printed, re.MULTILINE)
    torch_first, rad_first = map(float, losses[0])
    torch_last, rad_last = map(float, losses[-1])
    assert rad_first == pytest.approx(torch_first, abs=1e-2)  # torch's, but for dropout's draws
    assert torch_last < 0.8 * torch_first
    assert rad_last == pytest.approx(torch_last, abs=0.1 * torch_first)
