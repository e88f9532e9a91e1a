"""`rad.convert`: with the sketches that are given, or with those that a budget buys."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

from rad.conversion import modules
from rad.conversion.modules import Planned
from rad.errors import UsageError
from rad.planning.carry_out import carry_out
from rad.planning.path import Path
from rad.planning.plan import Plan
from rad.planning.probe import Kind, Loss
from rad.planning.variants import fit, sketching
from rad.sketches import Sketch

AUTO = "auto"


def convert(
    model: nn.Module,
    sketch: Sketch | Mapping[str, Sketch] | Planned | None = None,
    seed: int = 0,
    *,
    budget: str | float | None = None,
    example: Any = None,
    loss: Loss | None = None,
    variant: str = AUTO,
    batch_axis: Any = None,
    kind: Kind = "saved",
    path: Path = None,
    recomputed: Collection[str] = (),
    time: str | float | None = None,
    recompute: bool | None = None,
    functions: bool = True,
    inplace: bool = False,
) -> nn.Module:
    """The model, with weight gradients that are estimated from sketches of the activations.

    `model = rad.convert(model, rad.StochasticRounding(4))`: what is kept is said by `sketch`, which
    is one of all layers, a mapping of sketches by layer, or a plan of `rad.fit`.
    `model = rad.convert(model, budget="6 GB", example=batch)`: what is kept is what the budget
    buys. `rad.fit` finds the sketches with which the model, on an `example` of its inputs at the
    full batch size, meets it, as measured; `budget`, `loss`, `variant`, `batch_axis` and `kind` are
    its own. By default the model returns its loss (as its output, or as the output's attribute or
    key `loss`), and `variant="auto"` chooses each layer's sketch.

    A converted copy comes back, and `model` stays as it is; or with `inplace=True` the same object.
    Parameters and the names in `state_dict` are the same, and so are all outputs and, up to the
    noise of the sketches, whose mean is zero, all gradients. Draws depend on `seed`. What lies on
    the gradient's path stays exact unless `path`, a `rad.DitheredRounding`, is given; `auto` with a
    budget chooses it, too, where it is not given (`rad.Identity()` keeps it exact). Modules that
    `recomputed` names keep their inputs alone, and run again in the backward pass; `auto` with a
    budget chooses them, too, by what they and sketches cost: `time` and `recompute` are
    `rad.fit`'s. `functions` is whether functional calls are served. What is replaced by what, what
    stays, and what is refused: `rad.conversion.modules`; for a model at hand `rad.report` says it.

    Raises UsageError where both or neither of `sketch` and `budget` are given, for a budget without
    an example, for what goes with a budget without one, for a variant that keeps everything
    (`baseline`, `reduced_batch`, `accumulation`), and where `rad.fit` or
    `rad.conversion.modules.convert` does, for a budget that cannot be met, say. Nothing is
    converted then.
    """
    if (sketch is None) == (budget is None):
        raise UsageError(
            "give rad.convert either a sketch, such as rad.StochasticRounding(4), or budget= and "
            f"example=, such as budget='6 GB', example=batch; {_given(sketch, budget)}"
        )
    if budget is None:
        given = any(each is not None for each in (example, loss, batch_axis, time, recompute))
        if given or (variant, kind) != (AUTO, "saved"):
            raise UsageError(
                "example=, loss=, variant=, kind=, batch_axis=, time= and recompute= go with "
                "budget=: leave them out, or give budget= in place of a sketch"
            )
        assert sketch is not None
        if path == "auto":
            raise UsageError("path='auto' goes with budget=: give a sketch, or None")
        if isinstance(sketch, Plan) and sketch.division is not None:
            if path is not None or recomputed or not functions:
                raise UsageError(
                    f"a plan of {sketch.variant} compiles the model and converts no layer: leave "
                    "out path=, recomputed= and functions="
                )
            return carry_out(model, sketch, seed, inplace=inplace)
        return modules.convert(
            model,
            sketch,
            seed,
            path=path,
            recomputed=recomputed,
            functions=functions,
            inplace=inplace,
        )
    if recomputed:
        raise UsageError(
            "recomputed= goes with a sketch: leave it out, as with budget= rad.fit chooses what is "
            "recomputed"
        )
    if not functions:
        raise UsageError(
            "functions=False goes with a sketch: leave it out, as a plan counts functional calls"
        )
    if example is None:
        raise UsageError("budget= needs example=, to measure the model: give a batch of its inputs")
    if variant in ("baseline", "reduced_batch", "accumulation"):
        raise UsageError(
            f"variant={variant} keeps everything, which a conversion cannot fit into a budget: "
            f"choose one of {', '.join((*sketching(), 'checkpointing'))}, or rad.fit for the batch "
            "size that fits"
        )
    if path is None and variant == AUTO:
        path = "auto"
    plan = fit(
        model,
        example,
        loss,
        budget,
        variant,
        kind=kind,
        batch_axis=batch_axis,
        path=path,
        time=time,
        recompute=recompute,
    )
    return carry_out(model, plan, seed, inplace=inplace)


def _given(sketch: object, budget: object) -> str:
    return "both are given" if sketch is not None and budget is not None else "neither is given"
