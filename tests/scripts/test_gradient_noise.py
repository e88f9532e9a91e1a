import json
import re
from functools import partial
from pathlib import Path

import gradient_noise
import pandas as pd
import pytest
from calling import Call

from rad import data
from rad.errors import UsageError

TINY = (
    "dataset=digits",
    "device=cpu",
    "model.hidden=[9]",
    "scale=smoke",
    "noise.keep_fractions=[0.5]",
    "noise.variants=[same_sample,project]",
)


@pytest.fixture
def call(call: Call) -> Call:
    """Runs `python scripts/gradient_noise.py <arguments>` in this process, in an empty folder."""
    return partial(call, "gradient_noise")


def test_table_provenance_and_figure_that_do_not_change(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = call(*TINY)
    assert done.status == 0, done.err
    folder = tmp_path / "results/gradient_noise"
    table = pd.read_csv(folder / "feedforward_digits.csv")
    assert set(table["iteration"]) == {0, 2}
    assert set(table["weight"]) == {"1.weight", "3.weight", "all weights"}
    assert len(table) == 2 * 3 * (1 + 3)
    summary = json.loads((folder / "feedforward_digits.json").read_text())
    assert (summary["scale"], summary["minibatches"], summary["draws"]) == ("smoke", 2, 1)
    losses = [point["train_loss"] for point in summary["points"]]
    rows = pd.read_csv(
        tmp_path / "outputs/gradient_noise/feedforward_digits/iteration=2/metrics.csv"
    )
    assert losses == pytest.approx(list(rows["train_loss"]), rel=1e-4)
    assert {file.name for file in (tmp_path / "plots").iterdir()} == {
        f"gradient_noise_feedforward_digits{part}.{kind}"
        for part in ("", "_layers")
        for kind in ("png", "pdf")
    }
    drawn = {file: file.read_bytes() for file in (tmp_path / "plots").iterdir()}
    with monkeypatch.context() as patch:
        patch.delattr(gradient_noise, "measure")
        assert call(*TINY, "noise.measure=false").status == 0
    assert drawn == {file: file.read_bytes() for file in (tmp_path / "plots").iterdir()}
    (checkpoint,) = tmp_path.rglob("checkpoint.pt")
    trained = checkpoint.stat().st_mtime_ns
    assert call(*TINY, "noise.iterations=[2]").status == 0
    again = pd.read_csv(folder / "feedforward_digits.csv")
    trained_only = table[table["iteration"] == 2].reset_index(drop=True)
    pd.testing.assert_frame_equal(again, trained_only)
    assert checkpoint.stat().st_mtime_ns == trained


BAD = {
    "variant": (("variant=project",), r"noise.variants=\[...\]"),
    "kind": (("kind=peak",), "leave kind and allocation out"),
    "path": (("path=auto",), "leave path at null"),
    "allocation": (("allocation=optimal",), "leave kind and allocation out"),
    "compared": (("noise.variants=[baseline]",), "noise.variants is .*different_sample"),
    "no list": (("noise.iterations=3",), "noise.iterations is 3; give a list"),
    "negative": (("noise.iterations=[-1]",), "each a whole number of at least 0"),
    "twice": (("noise.keep_fractions=[0.1,0.1]",), "a number in .*, none twice"),
    "above 1": (("noise.keep_fractions=[2]",), r"each a number in \[1e-06, 1\]"),
    "empty": (("noise.keep_fractions=[]",), "give a list"),
    "minibatches": (("noise.minibatches=1",), "minibatches is 1.*at least 2"),
    "predictions": (("noise.predictions=300",), "of only 200 minibatches"),
    "scale": (("scale=huge",), "huge"),
    "nothing to draw": (("noise.measure=false",), "noise.measure=true"),
    "output": (("dataset=digits", "noise.output=/proc/x"), "choose noise.output="),
}


@pytest.mark.parametrize(("arguments", "pattern"), BAD.values(), ids=BAD.keys())
def test_bad_input_ends_in_one_line(
    arguments: tuple[str, ...], pattern: str, call: Call, tmp_path: Path
) -> None:
    done = call(*arguments)
    assert done.status == 2
    assert len(done.err.splitlines()) == 1, done.err
    assert re.search(pattern, done.err)
    assert not done.out
    assert not list(tmp_path.iterdir())


def test_options_of_the_data_set_count(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str, root: str | None, device: object, **options: object) -> None:
        raise UsageError(f"{name} with {options}")

    monkeypatch.setattr(data, "load", load)
    done = call("dataset=sequential_mnist", "dataset.downsample=4", "device=cpu", "scale=smoke")
    assert "sequential_mnist with {'downsample': 4, 'permuted': False}" in done.err


def test_the_noise_of_a_recurrent_net_is_measured(call: Call, tmp_path: Path) -> None:
    small = ("dataset=digits", "model.hidden=5", "scale=smoke", "noise.keep_fractions=[0.3]")
    done = call("model=irnn", *small, "noise.variants=[same_sample]", "noise.figure=noise.png")
    assert (done.status, done.err) == (0, "")
    (file,) = tmp_path.rglob("irnn_digits.csv")
    table = pd.read_csv(file)
    assert "rnn.weight_hh_l0" in set(table["weight"])
    assert table["total_predicted"].isna().all()
    assert (table.loc[table["variant"] == "same_sample", "sketch"] > 0).any()
    assert (tmp_path / "noise_layers.png").exists()
