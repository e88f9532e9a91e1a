"""No maker of a model leaves a size that it cannot have to torch."""

import inspect
import math
from typing import Any

import pytest
from torch import nn

from rad.errors import UsageError
from rad.models import MODELS
from rad.models.gpt import GPT
from rad.models.irnn import IRNN

IMAGES = {"input_shape": (3, 16, 16), "classes": 2}
TEXT = {"vocabulary": 5, "context": 4}
DATA: dict[str, dict[str, Any]] = {"gpt": TEXT}
"""What a model is told of its data, where that is no images."""

NO_SIZES = (0, -1, -7, 2.5, math.nan, True, "wide", None)
NO_LISTS = ((3, 0, 8), (3, -8, 8), (3, 2.5, 8), 5, "wide", None)
NO_STDS = (-0.1, math.inf, math.nan, "wide", None)


def cases() -> list[Any]:
    """Each argument of each maker, with each value that is none for it."""
    found = []
    for name, maker in MODELS.items():
        for argument, of in inspect.signature(maker).parameters.items():
            kind = str(of.annotation)
            bad = NO_LISTS if "Sequence" in kind or "tuple" in kind else NO_SIZES
            bad = NO_STDS if "float" in kind else bad
            found += [
                pytest.param(name, argument, value, id=f"{name}-{argument}-{value}")
                for value in bad
            ]
    return found


@pytest.mark.parametrize(("name", "argument", "value"), cases())
def test_a_size_that_is_none_is_refused_by_name(name: str, argument: str, value: object) -> None:
    given = {**DATA.get(name, IMAGES), argument: value}
    with pytest.raises(UsageError) as refused:
        MODELS[name](**given)
    (line,) = str(refused.value).splitlines()
    assert argument in line
    bad = next(e for e in value if type(e) is not int or e < 1) if type(value) is tuple else value
    assert repr(bad) in line
    assert "give " in line or "choose " in line


@pytest.mark.parametrize("name", MODELS)
def test_the_smallest_sizes_are_taken(name: str) -> None:
    maker = MODELS[name]
    least = {
        argument: 1
        for argument, of in inspect.signature(maker).parameters.items()
        if "int" in str(of.annotation)
        and of.default is not of.empty
        and argument != "depth"
        and isinstance(of.default, int)
    }
    assert isinstance(maker(**DATA.get(name, IMAGES), **least), nn.Module)


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        ("gpt", {"width": 10, "heads": 4}, "width 10 is no multiple of 4 heads"),
        ("vit", {"input_shape": (3, 8, 4)}, "takes square images"),
        ("convnet", {"kernel": 4}, "kernel is 4: give an odd"),
    ],
)
def test_sizes_that_do_not_fit_each_other(model: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        MODELS[model](**{**DATA.get(model, IMAGES), **options})


def test_the_classes_refuse_as_their_makers() -> None:
    with pytest.raises(UsageError, match="heads is 0: give a whole number"):
        GPT(5, 4, 1, 8, 0)
    with pytest.raises(UsageError, match="classes is -2: give a whole number"):
        IRNN(-2)
