import json
from pathlib import Path
from typing import Any

import depth_variance as script
import pandas as pd
import pytest
from _cli import CONFIGS
from _spec import check_settings, rules_of
from hydra import compose, initialize_config_dir

from rad.errors import UsageError


def configured(*overrides: str) -> Any:
    with initialize_config_dir(str(CONFIGS / "measure"), version_base="1.3"):
        return compose("depth_variance", overrides=list(overrides))


def test_rows_and_provenance(tmp_path: Path) -> None:
    small = ("depths=[1,2]", "bits=[3]", "draws=2", "width=4", "batch_size=3")
    script.main(configured(*small, f"output={tmp_path}/out"), [])
    table = pd.read_csv(tmp_path / "out/depth_variance.csv")
    assert list(zip(table["depth"], table["bits"], strict=True)) == [(1, 3), (2, 3)]
    assert (table["relative_variance"] > 0).all()
    summary = json.loads((tmp_path / "out/depth_variance.json").read_text())
    assert "commit" in summary
    assert (summary["draws"], summary["width"], summary["batch_size"]) == (2, 4, 3)


@pytest.mark.parametrize("bad", ["depths=[0]", "draws=1", "batch_size=0", "width=x", "bits=[1.5]"])
def test_bad_settings_are_refused(bad: str) -> None:
    with pytest.raises(UsageError, match=bad.split("=")[0]):
        check_settings(configured(bad), rules_of("depth_variance"))
