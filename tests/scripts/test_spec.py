"""What specifications of runs have in common."""

import pytest
from _spec import config_text, path_overrides
from omegaconf import OmegaConf

from rad.errors import UsageError
from rad.schema.values import choose_device

CONFIG = OmegaConf.create(
    {
        "model": {"name": "a", "widths": [1, 2]},
        "rate": 0.001,
        "note": "x",
        "scales": {"paper": 1},
        "logger": {"mode": "offline"},
        "training": {"steps": 3, "time_limit": None},
    }
)
RUNTIME = ("logger", "training.time_limit")


def kept(*overrides: str, named: tuple[str, ...] = ()) -> list[str]:
    return path_overrides(CONFIG, overrides, RUNTIME, named=named, script="train")


def test_values_stand_as_resolved() -> None:
    given = ("rate=1e-3", "note=x", "model.widths=[1, 2]", "training.time_limit=3", "logger.mode=y")
    assert kept(*given) == ["model.widths=[1,2]", "note=x", "rate=0.001"]
    assert kept("budget=0.1", "seed=3", "+experiment=e", "training.steps=3") == ["training.steps=3"]


def test_a_choice_and_a_mapping_stand_as_given() -> None:
    assert kept("model=a", "training={steps: 3}") == ["model=a", "training={steps: 3}"]
    assert kept("model=a", "model.name=a", named=("model",)) == ["model.name=a"]


def test_what_is_added_or_removed_is_refused() -> None:
    for override in ("+depth=3", "~rate", "++rate=3"):
        with pytest.raises(UsageError, match=r"has no effect; write .*scripts/train\.py --cfg job"):
            kept(override)


def test_the_text_has_no_runtime_settings_nor_scales() -> None:
    text = OmegaConf.create(config_text(CONFIG, RUNTIME, note="y"))
    assert list(text) == ["model", "rate", "note", "training"]
    assert (text.note, text.training) == ("y", {"steps": 3})


@pytest.mark.parametrize(
    ("name", "on", "off"), [("slices", 15, None), ("optimizer.fused", True, False)]
)
def test_later_settings_that_are_off_are_left_out(name: str, on: object, off: object) -> None:
    """Folders of results from before there were such settings still fit."""
    before = OmegaConf.merge(CONFIG, {"optimizer": {"name": "adam"}})
    texts = []
    for value in (off, on):
        config = before.copy()
        OmegaConf.update(config, name, value)
        texts.append(config_text(config, RUNTIME))
    assert texts[0] == config_text(before, RUNTIME)
    assert OmegaConf.select(OmegaConf.create(texts[1]), name) == on


@pytest.mark.parametrize("name", ["tpu", "meta", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"device '{name}'"):
        choose_device(name)
