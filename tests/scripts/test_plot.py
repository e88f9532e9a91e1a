from pathlib import Path

import pytest
from calling import Call

TINY = ("model.hidden=[12,9]", "optimizer.iterations=6", "training.evaluate_every=3")


def test_figure_and_table_of_an_experiment(call: Call, tmp_path: Path) -> None:
    call("train", "-m", "variant=baseline,project", "experiment_name=toy", *TINY)
    done = call("plot", "experiment=toy")
    assert done.status == 0, done.err
    assert sorted(p.name for p in (tmp_path / "plots").iterdir()) == ["toy.pdf", "toy.png"]
    assert "| baseline | full" in done.out
    assert "| project  | 0.1" in done.out
    other = ("budget=0.1", "output=x/y.png", "x=seconds", "second=null")
    assert call("plot", "experiment=toy", *other).status == 0
    assert (tmp_path / "x/y.pdf").exists()
    for bad in ("budget=0.5", "column=loss", "x=loss", "output=x/y.jpg"):
        refused = call("plot", "experiment=toy", bad)
        assert (refused.status, len(refused.err.splitlines())) == (2, 1)
    assert not list(tmp_path.glob("x/*.jpg"))


@pytest.mark.parametrize("arguments", [(), ("experiment=none",), ("colour=red",)])
def test_bad_input_ends_in_one_line(arguments: tuple[str, ...], call: Call, tmp_path: Path) -> None:
    done = call("plot", *arguments)
    assert done.status == 2
    assert len(done.err.splitlines()) == 1
    assert not list(tmp_path.iterdir())
