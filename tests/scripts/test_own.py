"""A class or function of one's own as model and as data set, named in a configuration."""

import json
import shutil
from pathlib import Path

import pytest
import train
from _cli import CONFIGS, Script, run
from calling import Call

OWN = """
from dataclasses import replace
from torch import nn
from rad.data import load

class Net(nn.Sequential):
    def __init__(self, input_shape, classes, width: int = 7):
        super().__init__(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, classes))

def few(count: int, device):
    whole = load("digits", device=device)
    return replace(whole, train_images=whole.train_images[:count],
                   train_labels=whole.train_labels[:count])

def nothing(input_shape, classes):
    return 3
"""
DATA = "name: few\n_target_: my_things.few\ncount: 300\niterations: 2000\ndecay_factor: 1.0\n"
DATA += "decay_every: null\ntuned: {baseline: {learning_rate: 1.0e-3, weight_decay: 0.0}}\n"
TINY = ("optimizer.iterations=4", "training.evaluate_every=2", "logger.mode=disabled")


@pytest.fixture
def own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Call:
    """Runs train.py on configurations that have models and data of one's own."""
    configs = tmp_path / "configs"
    shutil.copytree(CONFIGS / "train", configs)
    (tmp_path / "my_things.py").write_text(OWN)
    (configs / "dataset/few.yaml").write_text(DATA)
    for name, target in (("net", "Net"), ("no_net", "nothing"), ("none", "nowhere")):
        more = "width: 9\n" if name == "net" else ""
        text = f"name: {name}\n_target_: my_things.{target}\n{more}"
        (configs / f"model/{name}.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    def call(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["train.py", *arguments, *TINY])
        try:
            run(Script(train.main, train.check, train.together), "train", configs)
        except SystemExit as stop:
            return int(stop.code or 0), capsys.readouterr().err
        return 0, capsys.readouterr().err

    return call  # type: ignore[return-value]


def test_a_model_and_a_data_set_of_ones_own_are_trained(own: Call, tmp_path: Path) -> None:
    assert own("model=net", "dataset=few", "model.width=5") == (0, "")
    (file,) = (tmp_path / "results/net_few").rglob("summary.json")
    assert (
        file.parts[-3]
        == "budget=0.1,model.width=5,optimizer.iterations=4,training.evaluate_every=2"
    )
    summary = json.loads(file.read_text())
    assert summary["memory"]["parameter_bytes"] == 4 * (64 * 5 + 5 + 5 * 10 + 10)
    assert "my_things.few" in file.with_name("config.yaml").read_text()


@pytest.mark.parametrize(
    ("given", "pattern"),
    [
        ("model=net model.width=x", "model.width is 'x'; give int, which my_things.Net takes"),
        ("model=none", "my_things has no class or function 'nowhere'"),
        ("model=no_net", "model 'my_things.nothing' is a int; give a torch.nn.Module"),
        ("model=net model.name=5", "model.name is 5; give a name"),
        ("dataset=few ~dataset.count", "my_things.few does not take.*count"),
        ("dataset=few dataset.iterations=0", "dataset.iterations is 0"),
        ("dataset=few dataset._target_=elsewhere.few", "cannot import elsewhere.*PYTHONPATH="),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(given: str, pattern: str, own: Call) -> None:
    status, line = own(*given.split())
    assert (status, len(line.splitlines())) == (2, 1), line
    with pytest.raises(ValueError, match=pattern):
        raise ValueError(line)
