"""Every setting is checked before any work: its type, its range, its choices."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from _cli import BAD_INPUT, composed, home_of, one_line, validate
from _spec import rules_of
from calling import SCRIPTS, Call
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from rad.errors import UsageError
from rad.schema.rules import Choice, Flag, ListOf, Named, Number, OrNull, Some, Text, Whole, check
from rad.torture.nonsense import Nonsense, Tree, sensible
from rad.torture.outcomes import LOST

NAMES = sorted(
    file.stem
    for file in SCRIPTS.glob("*.py")
    if not file.stem.startswith("_") and "run(_cli.Script(" in file.read_text()
)


RULES = {script: rules_of(home_of(script)[1]) for script in NAMES}


def checked(script: str, words: Sequence[str]) -> Tree:
    return plain(validate(script, words))


def plain(config: Any) -> Tree:
    tree: Any = OmegaConf.to_container(config, resolve=True)
    return tree


@pytest.mark.parametrize("script", NAMES)
def test_the_defaults_hold_and_every_setting_has_a_rule(script: str) -> None:
    config = validate(script, [])
    rules = rules_of(home_of(script)[1])
    assert set(map(str, config)) - {"scales"} == set(rules)


BAD = {
    "no is a text": ("train", "variant.replacement=no", "replacement is 'no'; give true or"),
    "quoted false": ("train", "variant.replacement='false'", "variant.replacement is 'false'"),
    "a number for a flag": ("train", "variant.replacement=2", "variant.replacement is 2"),
    "maybe": ("train_pde", "variant.replacement=maybe", "variant.replacement is 'maybe'"),
    "huge decay": ("train", "optimizer.weight_decay=1e300", r"weight_decay is 1e\+300.*1e\+30"),
    "huge width": ("train", "model.hidden=[1000000000000]", "model.hidden is .*at most 10000000"),
    "huge weights": ("train", "model.hidden=[9000000,9000000]", "GB for parameters.*this machine"),
    "no variant": (
        "train",
        "variant=null",
        "variant.*choose one of accumulation, activation_memory_budget, auto",
    ),
    "no logger": ("train", "logger=null", "logger.*choose one of tensorboard, wandb"),
    "no logger of the PDE": ("train_pde", "logger=null", "logger"),
    "no problem": ("train_pde", "problem=null", "problem is null"),
    "bits of no whole number": (
        "train variant=sampled_rounding",
        "variant.bits=2.0",
        "unknown variant.bits 2.0; choose one of 1, 2, 3, 4, 8",
    ),
    "no channels": ("train model=convnet", "model.channels=[0,2,2,2]", r"model.channels is \[0, 2"),
    "pooled away": ("train model=convnet", "model.channels=[2,2,2,2,2,2,2,2]", "pool .* away"),
    "no images": ("train model=convnet", "dataset=sequential_mnist", "a convnet takes images"),
    "a number for a path": ("train", "results_root=5", "results_root is 5; give a path"),
    "a list for a note": ("train", "scale=[1]", r"scale is \[1\], and there are no scales"),
    "no such scale": ("train +experiment=fig5b_mnist", "scale=tiny", "unknown scale 'tiny'.*smoke"),
    "no networks": ("benchmark", "networks=[]", r"networks is \[\]; give a list"),
    "no programs": ("benchmark", "programs=[]", r"programs is \[\]; give a list"),
    "a number for rounds": ("benchmark", "rounds=5", "rounds is 5; give its entries"),
    "no batch": ("benchmark", "batch_size=0", "batch_size is 0; give a whole number"),
    "unstable": ("benchmark networks=[pde]", "pde.dt=1", "dt=1 is unstable"),
    "a number for limits": ("largest_batch", "limit=5", "limit is 5; give its entries"),
    "no size": ("largest_batch", "limit.cpu=0.5", "limit.cpu.*0.5 is no size.*4 GB"),
    "no sketch": ("allocation", "variants=[baseline]", "variants is .*same_sample"),
    "nothing to allocate": ("allocation", "variants=[]", r"variants is \[\]"),
    "spaces": ("tune", 'experiment_name="my run"', "experiment_name is 'my run'; give a name"),
    "no name": ("train", "experiment_name=null", "experiment_name is null; give a name"),
    "negative seed": ("path_sampling", "seed=-1", "seed is -1; give a whole number"),
    "no power": ("path_sampling", "settings=[[6,2]]", "width is 6; give a power of 2"),
    "more than there is": ("path_sampling", "settings=[[4,5]]", "cannot keep 5 of 4"),
    "next to nothing": ("train", "budget=1e-300", "budget 1e-300 is too small"),
    "an added setting": ("benchmark", "+depth=3", "'depth' adds or removes"),
    "a removed one": ("benchmark", "~programs", "programs is missing"),
    "a device's number": ("train", "device=5", "unknown device 5"),
    "not a number": ("train", "optimizer.learning_rate=nan", "learning_rate is nan"),
    "a budget of another kind": ("plot experiment=x", "budget=[1]", "budget"),
}


@pytest.mark.parametrize(("command", "bad", "pattern"), BAD.values(), ids=BAD.keys())
def test_what_cannot_be_is_refused_in_one_line(
    command: str, bad: str, pattern: str, call: Call, tmp_path: Path
) -> None:
    script, *given = command.split(" ")
    for several in ([], ["-m"]):
        done = call(script, *several, *given, bad)
        assert done.status == 2, done.err
        assert len(done.err.splitlines()) == 1, done.err
        with pytest.raises(UsageError, match=pattern):
            raise UsageError(done.err)
        assert not list(tmp_path.iterdir())


def test_sweeps_without_values_and_clusters_that_are_not_there(call: Call) -> None:
    nothing = call("train", "-m", "seed=glob(*)")
    assert nothing.status == 2
    assert "gives no value; write seed=<a>,<b>" in nothing.err
    absent = call("train", "-m", "hydra/launcher=submitit_slurm")
    assert absent.status == 2
    assert "needs Slurm's srun" in absent.err
    broken = call("train", "-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=0")
    assert (broken.status, len(broken.err.splitlines())) == (2, 1)
    assert "n_jobs == 0" in broken.err


@pytest.mark.parametrize(
    ("rule", "good", "bad"),
    [
        (Whole(1, 5), (1, 5), (0, 6, 1.0, True, "1", None)),
        (Number(0, 1, above=True), (1, 0.5), (0, 2, math.nan, math.inf, True, "1")),
        (Flag(), (True, False), (0, 1, "true", "no", None)),
        (Choice((1, 2)), (1, 2), (3, 1.0, True, "1")),
        (Text("a+", "a's"), ("a", "aa"), ("", "b", 1, None)),
        (OrNull(Whole()), (None, 1), (0, "")),
        (ListOf(Whole(), distinct=True), ([1], [1, 2]), ([], [1, 1], [0], 1, "1", {})),
        (ListOf(Whole(), length=2), ([1, 1],), ([1], [1, 1, 1])),
        (
            Some({"a": Whole(), "b": Whole()}),
            ({"a": 1}, {"a": 1, "b": 2}),
            ({}, {"c": 1}, {"a": 0}),
        ),
        (
            Named({"x": {"a": Whole()}, "y": {}}),
            ({"name": "x", "a": 1}, {"name": "y"}),
            ({"name": "x"}, {"name": "y", "a": 1}, {"name": "z"}, {"a": 1}, None, "x"),
        ),
    ],
    ids=str,
)
def test_rules(rule: Any, good: tuple[Any, ...], bad: tuple[Any, ...]) -> None:
    for value in good:
        check("it", value, rule)
    for value in bad:
        with pytest.raises(UsageError, match=r"\bit\b") as refusal:
            check("it", value, rule)
        assert "\n" not in str(refusal.value)


NONSENSE = Nonsense(RULES, checked, BAD_INPUT, one_line)


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(st.randoms(use_true_random=False))
def test_random_command_lines_are_refused_in_one_line_or_make_sense(draw: random.Random) -> None:
    """Nothing is trained: what is checked before any work is all that runs."""
    found = NONSENSE.attempt(draw.choice(NONSENSE.kinds), draw)
    assert found.verdict != LOST, found.note


def test_what_makes_no_sense_is_noticed() -> None:
    def accepted(script: str, words: Sequence[str]) -> Tree:
        return plain(composed(script, words))

    accepting = Nonsense(RULES, accepted, BAD_INPUT, one_line)
    found = [accepting.attempt("train", random.Random(n)) for n in range(20)]
    assert sum(each.verdict == LOST for each in found) >= 5
    values = (1, 0.5, True, "x", [1], None)
    assert all(sensible(value, value) for value in values)
    assert not any(sensible(value, 2) for value in (True, "x", [1], 1e300, 0.5, math.nan))
    assert sensible(0.5, 2, OrNull(Number()))
    assert not sensible(0.5, 2, OrNull(Whole()))
