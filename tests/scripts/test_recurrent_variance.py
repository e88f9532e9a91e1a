import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import recurrent_variance as script
import torch
from _cli import CONFIGS
from _spec import check_settings, rules_of
from hydra import compose, initialize_config_dir

from rad import data
from rad.errors import UsageError


def fake(*_: object, downsample: int) -> data.Dataset:
    """Random sequences of 28 / downsample steps."""
    generator = torch.Generator().manual_seed(0)
    shape = (30, 28 // downsample, 1)
    images = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    labels = torch.randint(10, (30,), generator=generator, dtype=torch.uint8)
    return data.Dataset("fake", images, labels, images, labels, (0.5,), (0.3,), 10)


def configured(*overrides: str) -> Any:
    with initialize_config_dir(str(CONFIGS / "measure"), version_base="1.3"):
        return compose("recurrent_variance", overrides=["hidden=9", *overrides])


def test_rows_provenance_and_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "load_images", fake)
    paths = (f"output={tmp_path}/out", f"figure={tmp_path}/figure.png")
    script.main(configured("downsample=[4,2]", "draws=64", "batch_size=20", *paths), [])
    table = pd.read_csv(tmp_path / "out/recurrent_variance.csv")
    assert list(table["steps"]) == [7, 7, 7, 14, 14, 14]
    error = (table["measured"] - table["predicted"]).abs() / table["standard_error"]
    assert error.max() < 5
    summary = json.loads((tmp_path / "out/recurrent_variance.json").read_text())
    assert (summary["draws"], summary["hidden"], summary["batch_size"]) == (64, 9, 20)
    assert (tmp_path / "figure.png").exists()


@pytest.mark.parametrize(
    "bad", ["downsample=[3]", "draws=1", "batch_size=0", "hidden=x", "keep_fraction=2"]
)
def test_bad_settings_are_refused(bad: str) -> None:
    with pytest.raises(UsageError, match=bad.split("=")[0]):
        check_settings(configured(bad), rules_of("recurrent_variance"))
