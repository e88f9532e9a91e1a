"""The sketches that configurations, planning, benchmarks and figures know by name.

A sketch registers itself when the module that defines it is imported (those of this package are,
by `rad.sketches`). `Identity`, which has nothing to choose and no noise, is not among them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, Literal, TypeVar

from rad.packing.codes import PLANES
from rad.sketches.base import ReducingSketch, Shape, Sketch

Decides = Literal["keep_fraction", "bits"]

_Class = TypeVar("_Class", bound=type[Sketch])


@dataclass(frozen=True)
class SketchKind:
    """A kind of sketch: its name, and what is chosen of it.

    `decides` is the field that a memory budget decides: a keep fraction (the largest that fits),
    bits (the most), or None where there is nothing to choose. `options` are further fields that a
    user may set, `defaults` those that are set where the user does not. With `of_paper` a budget
    that is a fraction is the keep fraction itself. `menu` lists what `variant=auto` chooses among.
    """

    name: str
    sketch: Callable[..., Sketch]
    decides: Decides | None = None
    options: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    of_paper: bool = False
    menu: Callable[[], Iterable[Sketch]] = tuple

    def make(self, decided: float | None = None, **options: Any) -> Sketch:
        """The sketch with that keep fraction or number of bits, and those options."""
        fields = {**self.defaults, **options}
        if self.decides is not None:
            fields[self.decides] = decided
        return self.sketch(**fields)

    def ascending(self, shape: Shape, **options: Any) -> list[Sketch]:
        """Every sketch that a budget may choose for a tensor of that shape, by growing bytes."""
        if self.decides is None:
            return [self.make(**options)]
        if self.decides == "bits":
            return [self.make(bits, **options) for bits in sorted(PLANES)]
        of = self.make(1.0, **options).kept_of(shape)  # type: ignore[attr-defined]
        return [self.make(k / of, **options) for k in range(1, of + 1)]


_KINDS: dict[str, SketchKind] = {}


def register(
    name: str,
    *,
    decides: Decides | None = None,
    options: tuple[str, ...] = (),
    defaults: Mapping[str, Any] = MappingProxyType({}),
    of_paper: bool = False,
    menu: Callable[[], Iterable[Sketch]] = tuple,
) -> Callable[[_Class], _Class]:
    """Makes a class of sketches known as `name`: a decorator with the fields of `SketchKind`.

    Raises ValueError for a name that is taken, and for fields that the class does not have.
    """

    def decorate(sketch: _Class) -> _Class:
        if name in _KINDS:
            raise ValueError(f"the name {name!r} is taken by {_KINDS[name].sketch}")
        named = {*options, *defaults, *([decides] if decides else [])}
        unknown = named - {each.name for each in fields(sketch)}  # type: ignore[arg-type]
        if unknown:
            raise ValueError(f"{sketch.__name__} has no field {', '.join(sorted(unknown))}")
        if decides == "keep_fraction" and not issubclass(sketch, ReducingSketch):
            raise ValueError(f"{sketch.__name__} must be a ReducingSketch to have a keep fraction")
        if menu is not tuple and sketch.noise is Sketch.noise:
            raise ValueError(f"{sketch.__name__} must tell its noise to be on the menu of auto")
        _KINDS[name] = SketchKind(name, sketch, decides, options, defaults, of_paper, menu)
        return sketch

    return decorate


def kinds() -> Mapping[str, SketchKind]:
    """Every kind that is registered, by name; those of the paper first."""
    ordered = sorted(_KINDS.values(), key=lambda kind: not kind.of_paper)
    return MappingProxyType({kind.name: kind for kind in ordered})
