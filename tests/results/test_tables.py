"""Tables with their provenance beside them."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from rad.errors import UsageError
from rad.results import machine, make_folder, name_of, write_table

TABLE = pd.DataFrame({"name": ["a", None], "value": [1 / 3, 2.0]})


def test_a_table_and_what_lies_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "new/folder/table.csv"
    assert write_table(file, TABLE, {"device": "x"}) == file
    assert file.read_text() == "name,value\na,0.3333333333333333\n,2.0\n"
    assert file.with_suffix(".json").read_text() == '{\n  "device": "x"\n}\n'
    write_table(file, TABLE, None, float_format="%.3g")
    assert file.read_text() == "name,value\na,0.333\n,2\n"
    assert json.loads(file.with_suffix(".json").read_text()) == {"device": "x"}
    assert sorted(f.name for f in file.parent.iterdir()) == ["table.csv", "table.json"]


def test_a_folder_that_cannot_be_made_names_its_setting(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"cannot make .*file/x \(.+\); choose output=$"):
        write_table(tmp_path / "file/x/table.csv", TABLE, {})
    with pytest.raises(UsageError, match=r"choose noise\.output=$"):
        write_table(tmp_path / "file/x/table.csv", TABLE, {}, setting="noise.output")
    with pytest.raises(UsageError, match=r"choose root=$"):
        make_folder(tmp_path / "file/x", "root")


def test_the_machine_is_named() -> None:
    cpu = torch.device("cpu")
    assert machine(cpu) == {"device": name_of(cpu), "threads": torch.get_num_threads()}
    assert name_of(cpu)


def test_no_module_of_it_imports_torch() -> None:
    """Of its files alone: what `rad` itself loads is not theirs."""
    code = (
        "import sys, types, pathlib\n"
        "package = types.ModuleType('rad'); package.__path__ = [sys.argv[1]]\n"
        "sys.modules['rad'] = package\n"
        "import rad.results\n"
        "assert 'torch' not in sys.modules\n"
    )
    root = Path(__file__).resolve().parents[2] / "rad"
    subprocess.run([sys.executable, "-c", code, str(root)], check=True, timeout=60)
