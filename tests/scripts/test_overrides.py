"""What Hydra would drop of a command line, or merge, is refused before any work."""

from __future__ import annotations

from pathlib import Path

import pytest
from _cli import CONFIGS, check_overrides
from calling import Call

from rad.errors import UsageError

GROUPS = ("model", "dataset", "variant", "optimizer", "logger")
OF_SCRIPTS = {
    "train": (*GROUPS, "+experiment"),
    "tune": (*GROUPS, "+experiment"),
    "gradient_noise": ("+variant", "+experiment"),
    "train_pde": ("variant", "logger", "+experiment"),
}


def refused(call: Call, folder: Path, script: str, *arguments: str) -> str:
    """The one line that refuses them; nothing was written."""
    done = call(script, *arguments)
    assert done.status == 2, done.err
    (line,) = done.err.splitlines()
    assert done.out == ""
    assert not list(folder.iterdir())
    return line


@pytest.mark.parametrize("script", OF_SCRIPTS)
def test_a_list_for_a_group(script: str, call: Call, tmp_path: Path) -> None:
    for group in OF_SCRIPTS[script]:
        line = refused(call, tmp_path, script, f"{group}=[one,two]")
        assert line.endswith(
            f"{group.lstrip('+')} takes one name; a sweep over several is -m {group}=one,two"
        )


def test_a_list_for_a_group_within_a_group() -> None:
    with pytest.raises(UsageError, match="pde/variant takes one name; a sweep over several is -m"):
        check_overrides(["+pde/variant=[one,two]"], CONFIGS)


@pytest.mark.parametrize(
    "arguments",
    [
        ["variant=[]"],
        ["variant=[baseline]"],
        ["+variant=[baseline,project]"],
        ["-m", "variant=[baseline,project]"],
        ["-m", "variant=auto,[baseline,project]"],
    ],
    ids=str,
)
def test_other_lists(arguments: list[str], call: Call, tmp_path: Path) -> None:
    assert "variant takes one name" in refused(call, tmp_path, "train", *arguments)


@pytest.mark.parametrize("word", ["null", "1", "true", "auto,null"])
def test_no_name_for_a_group(word: str, call: Call, tmp_path: Path) -> None:
    line = refused(call, tmp_path, "train", "-m", f"variant={word}")
    assert (
        "names no variant: choose one of accumulation, activation_memory_budget, auto, baseline"
        in line
    )


def test_a_setting_given_twice(call: Call, tmp_path: Path) -> None:
    line = refused(call, tmp_path, "train", "variant=baseline", "seed=1", "variant=project")
    assert "variant is given twice, as 'variant=baseline' and 'variant=project'" in line
    assert "-m variant=<a>,<b>" in line
    assert "twice" in refused(call, tmp_path, "train", "variant=baseline", "+variant=project")


def test_several_names_without_a_sweep(call: Call, tmp_path: Path) -> None:
    line = refused(call, tmp_path, "train", "variant=baseline,project")
    assert "write -m variant=baseline,project" in line


def test_lists_and_choices_that_mean_something_stay(call: Call) -> None:
    tiny = ("model.hidden=[6,5]", "optimizer.iterations=2", "optimizer={learning_rate:0.1}")
    assert call("train", "-m", "variant=choice(baseline,project)", *tiny).status == 0
    assert call("train", "optimizer=[sgd]", "hydra/launcher=basic", *tiny[:2]).status == 2


@pytest.mark.parametrize("script", ["tune", "gradient_noise"])
def test_no_job_of_a_sweep_is_dropped(script: str, call: Call) -> None:
    """What does one job at a time would do the first of each program's alone."""
    few = ("dataset=digits", "optimizer.iterations=1", "runs_per_process=2")
    done = call(script, "-m", "seed=0,1", *few)
    assert done.status == 2
    assert done.err == "error: unknown runs_per_process 2; choose one of 1\n"
