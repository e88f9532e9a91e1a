from pathlib import Path

import pandas as pd
from calling import Call


def test_figures_and_tables_of_an_experiment(call: Call, tmp_path: Path) -> None:
    variants = ("-m", "variant=baseline,different_sample", "budget=0.1,0.02")
    assert call("train_pde", *variants, "scale=smoke", "logger.mode=disabled").status == 0
    (trained,) = tmp_path.glob("results/fig6_pde/baseline/*/seed=0")
    chosen = ("fractions=[0.02]", "draws=3", "rounds=1")
    done = call("pde_variance", f"trained='{trained}'", *chosen)
    assert done.status == 0, done.err
    table = pd.read_csv(tmp_path / "results/pde_variance/cpu.csv")
    assert len(table) == 4
    sampled = table["variant"] == "different_sample"
    assert (table.loc[sampled, "noise_start"] > 0).all()
    assert (table.loc[~sampled, ["noise_start", "noise_trained"]] == 0).all(axis=None)
    assert (table["peak_bytes"] >= table["saved_bytes"]).all()

    rounded = ("variants=[{name:sampled_rounding,bits:3}]", "fractions=[0.5]", "output=rounded")
    done = call("pde_variance", f"trained='{trained}'", "draws=3", "rounds=1", *rounded)
    assert done.status == 0, done.err
    exact, sketched = pd.read_csv(tmp_path / "rounded/cpu.csv").to_dict("records")
    assert (sketched["variant"], sketched["bits"]) == ("sampled_rounding", 3)
    assert exact["noise_start"] == 0 < sketched["noise_start"]

    times = ("film_times=[0,1,2]", "sample_time=1")
    done = call("plot_pde", *times)
    assert done.status == 0, done.err
    assert "| full | 100,684 |" in done.out
    names = sorted(p.name for p in (tmp_path / "plots").glob("*.png"))
    assert names == ["fig6_filmstrip.png", "fig6_variance.png", "fig6a.png", "fig6b.png"]

    for bad, message in {
        "film_times=[11]": "leave 0..2",
        "shown.seed=5": "seed=5",
        "overrides=x": "no baseline",
        "variance=none.csv": "cannot read none.csv",
    }.items():
        refused = call("plot_pde", *times, "output=x/y", bad)
        assert (refused.status, len(refused.err.splitlines())) == (2, 1)
        assert message in refused.err
    assert not (tmp_path / "x").exists()


def test_results_that_are_not_there(call: Call, tmp_path: Path) -> None:
    for name in ("plot_pde", "pde_variance"):
        refused = call(name)
        assert (refused.status, len(refused.err.splitlines())) == (2, 1)
        assert "no finished run" in refused.err
    assert not list(tmp_path.iterdir())
