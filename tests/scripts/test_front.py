"""What a newcomer types first: help, near misses, experiments, budgets in units, defaults."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from _spec import rules_of
from calling import SCRIPTS, Call, home_of
from test_settings import NAMES

from rad.memory.budget import canonical
from rad.schema.explained import OTHERS, explanations, of_choice
from rad.schema.near import keys_of, nearest

TINY = ("model.hidden=[6,5]", "optimizer.iterations=2")


@pytest.mark.parametrize("script", NAMES)
def test_every_setting_is_explained(script: str) -> None:
    folder, name = home_of(script)
    explained = explanations(folder, name)
    for group in (each for each in folder.iterdir() if each.is_dir() and each.name != "experiment"):
        for file in group.glob("*.yaml"):
            about, settings = of_choice(folder, group.name, file.stem)
            assert about, file
            explained |= settings
    for key in explained:
        parents = [key.rsplit(".", n)[0] for n in range(key.count(".") + 1)]
        inner = any(other.startswith(f"{key}.") for other in explained)
        assert (
            inner or key.split(".")[0] in (*OTHERS, "scales") or any(map(explained.get, parents))
        ), (
            script,
            key,
        )


def test_help_has_a_title_and_the_groups_of_its_script(call: Call) -> None:
    shown = call("train", "--help", "variant=sampled_rounding").out
    assert shown.startswith("Train one variant")
    assert "variant.bits=2\n      1, 2, 3, 4 or 8" in shown
    assert "sampled_rounding" in shown
    assert "(chosen)" in shown
    other = call("train_pde", "--help").out
    assert "checkpointing" in other
    assert "model=<one of>" not in other
    plain = call("plot", "--help").out
    assert plain.startswith("Draw an experiment's curves")
    assert "<one of>" not in plain


def test_a_reader_who_has_read_enough_ends_it_quietly() -> None:
    command = f"{sys.executable} {SCRIPTS / 'plot.py'} --help | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout.startswith("Draw")


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("lr", "optimizer.learning_rate"),
        ("wd", "optimizer.weight_decay"),
        ("learning_rate", "optimizer.learning_rate"),
        ("optimiser.learning_rate", "optimizer.learning_rate"),
        ("epochs", "optimizer.iterations"),
        ("batchsize", "batch_size"),
        ("bits", "variant.bits"),
        ("variantt", "variant"),
        ("keep_fraction", "budget"),
        ("zebra", None),
    ],
)
def test_near_misses(word: str, meant: str | None) -> None:
    assert nearest(word, keys_of(rules_of("train"))) == meant


def test_a_near_miss_is_named(call: Call) -> None:
    for several in ([], ["-m"]):
        (line,) = call("train", *several, "lr=0.1").err.splitlines()
        assert "did you mean optimizer.learning_rate=...?" in line
        assert "python scripts/train.py --help" in line


def test_experiment_with_and_without_a_plus(call: Call, tmp_path: Path) -> None:
    for sign, seed in (("", 0), ("+", 1)):
        assert call("train", f"{sign}experiment=quickstart", f"seed={seed}", *TINY).status == 0
        drawn = call("plot", f"{sign}experiment=quickstart", "output=drawn.png")
        assert drawn.status == 0, drawn.err
    (folder,) = (tmp_path / "results/quickstart/different_sample").iterdir()
    assert sorted(each.name for each in folder.iterdir()) == ["seed=0", "seed=1"]
    wrong = call("train", "experiment=quickstarted")
    assert "unknown experiment 'quickstarted': choose one of" in wrong.err


@pytest.mark.parametrize(
    ("given", "one"),
    [
        (600000, 600000),
        (6e5, 600000),
        ("600kB", 600000),
        ("0.6 MB", 600000),
        ("1 KiB", 1024),
        (1, 1),
        (1.0, 1),
        (0.1, 0.1),
        (" full ", "full"),
    ],
)
def test_one_spelling_of_a_budget(given: str | float, one: str | float) -> None:
    assert canonical(given) == one
    assert type(canonical(given)) is type(one)


def test_one_budget_has_one_folder(call: Call, tmp_path: Path) -> None:
    for budget in ("60000", "60kB", "0.06 MB"):
        assert call("train", f"budget={budget}", *TINY).status == 0
    name = "budget=60000,model.hidden=[6,5],optimizer.iterations=2"
    assert [each.name for each in tmp_path.glob("results/*/*/*")] == [name]


def test_defaults_that_are_given_name_the_folder_of_those_left_out(
    call: Call, tmp_path: Path
) -> None:
    usual = ("batch_size=150", "optimizer=adam", "optimizer.learning_rate=1e-3", "slices=null")
    usual += ("optimizer.decay_factor=1", "variant.replacement=true", "model=feedforward")
    usual += ("optimizer.decay_every=null", "training={evaluate_every:400}", "scale=null")
    for several in ([], ["-m"]):
        assert call("train", *several, *TINY, *usual).status == 0
        assert call("train", *several, *TINY).out.count("finished already, skipped\n") == 1
    assert call("train", *TINY, "batch_size=149").status == 0
    assert len(list(tmp_path.glob("results/*/*/*"))) == 2


@pytest.mark.parametrize("given", [(), ("experiment=quickstart",)])
def test_a_scale_needs_an_experiment_that_has_some(given: tuple[str, ...], call: Call) -> None:
    (line,) = call("train", *given, "scale=cpu").err.splitlines()
    assert "there are no scales here" in line
    assert "experiment=fig5b_mnist scale=cpu" in line
