"""Every setting is checked before any work: its type, its range, its choices."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from _cli import BAD_INPUT, check_overrides, one_line
from _spec import check_settings, rules_of
from calling import SCRIPTS, Call, home_of
from hydra import compose, initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from rad.errors import UsageError
from rad.schema.rules import Choice, Flag, ListOf, Named, Number, OrNull, Some, Text, Whole, check

NAMES = sorted(
    file.stem
    for file in SCRIPTS.glob("*.py")
    if not file.stem.startswith("_") and "run(_cli.Script(" in file.read_text()
)


def composed(script: str, overrides: list[str]) -> DictConfig:
    folder, name = home_of(script)
    check_overrides(overrides, folder)
    with initialize_config_dir(str(folder), version_base="1.3"):
        return compose(name, overrides=overrides)


def validate(script: str, overrides: list[str]) -> DictConfig:
    """What a script checks before it works. Raises what it raises."""
    config = composed(script, overrides)
    check_settings(config, rules_of(home_of(script)[1]))
    own = getattr(importlib.import_module(script), "check", None)
    if own is not None:
        own(config.copy(), overrides)
    return config


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
    "no variant": ("train", "variant=null", "variant.*choose one of auto"),
    "no logger": ("train", "logger=null", "logger.*choose one of wandb"),
    "no logger of the PDE": ("train_pde", "logger=null", "logger"),
    "no problem": ("train_pde", "problem=null", "problem is null"),
    "bits of no whole number": (
        "train variant=sampled_rounding",
        "variant.bits=2.0",
        "unknown variant.bits 2.0; choose one of 1, 2, 3, 4, 8",
    ),
    "no channels": ("train model=convnet", "model.channels=[0,2,2,2]", r"model.channels is \[0, 2"),
    "pooled away": ("train model=convnet", "model.channels=[2,2,2,2,2,2,2,2]", "pool .* away"),
    "no images": ("train model=convnet", "dataset=sequential_mnist", "convnet reads images"),
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
    "no power": ("path_sampling", "settings=[[6,2]]", "power of 2, got 6"),
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


SCALARS = ("null", "true", "no", "maybe", "-1", "0", "1", "2.0", "0.3", "1.5", "1e300", "1e-300")
SCALARS += ("nan", "inf", "-inf", "x", "''", "'a b'", "'1'", "99999999999999999999", "1e20")
VALUES = (*SCALARS, *(f"[{value}]" for value in SCALARS), "[]", "[1,1]", "[[1]]", "{}", "{a:1}")


@cache
def settings_of(script: str) -> list[tuple[str, Any]]:
    """Dotted names and defaults."""
    return list(leaves(OmegaConf.to_container(composed(script, []), resolve=True)))


def leaves(tree: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if key == "scales":
            continue
        yield f"{above}{key}", value
        if isinstance(value, Mapping):
            yield from leaves(value, f"{above}{key}.")


def sensible(value: Any, default: Any) -> bool:
    """Whether a value is of its default's kind, and such as a number of anything can be."""
    if value is None or default is None:
        return True
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    if isinstance(default, int | float):
        number = isinstance(value, int | float) and math.isfinite(value) and abs(value) < 1e31
        return number and (isinstance(value, int) or isinstance(default, float))
    if isinstance(default, list):
        return isinstance(value, list)
    return type(value) is type(default) and value != ""


@st.composite
def command_lines(draw: st.DrawFn) -> tuple[str, dict[str, str]]:
    """A script, and one or two of its settings with values of all kinds."""
    script = draw(st.sampled_from(NAMES))
    settings = draw(st.lists(st.sampled_from(settings_of(script)), min_size=1, max_size=2))
    usual = {name: json.dumps(default).replace('"', "") for name, default in settings}
    return script, {
        name: draw(st.sampled_from((*VALUES, word)) | st.integers().map(str) | st.floats().map(str))
        for name, word in usual.items()
    }


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(command_lines())
def test_random_command_lines_are_refused_in_one_line_or_make_sense(
    command: tuple[str, dict[str, str]],
) -> None:
    """Nothing is trained: what is checked before any work is all that runs."""
    script, given = command
    try:
        config = validate(script, [f"{name}={value}" for name, value in given.items()])
    except BAD_INPUT as error:
        words = one_line(error)
    else:
        words = ""
        defaults = dict(settings_of(script))
        for name in given:
            value = OmegaConf.select(config, name)
            value = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
            size = name.endswith("budget") or name.startswith("limit.")  # a text or bytes
            assert sensible(value, defaults[name]) or size, (name, value)
    assert "\n" not in words
