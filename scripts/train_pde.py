"""Control the reaction-diffusion equation: `python scripts/train_pde.py budget=0.01`.

Any setting of configs/pde/pde.yaml can be given, and swept with -m. A finished run is skipped,
an interrupted one resumes.
"""

from __future__ import annotations

from typing import Any

import _cli  # first: see there
from _pde_spec import PdeSpec, read
from omegaconf import DictConfig, OmegaConf

from rad.memory import parameter_bytes, peak_bytes, saved_bytes
from rad.pde.training import Control, train
from rad.results import RunFolder, machine, provenance
from rad.training import RunInfo, Shown, TrainResult, follow


def main(config: DictConfig, overrides: list[str]) -> None:
    """Measure, train and write one run."""
    spec = read(config, overrides)
    folder = RunFolder(spec.path)
    if folder.finished():
        print(f"{folder.path}: finished already, skipped", flush=True)
        return
    origin = provenance()
    with folder.open(spec.text):
        if folder.finished():  # by another process, in the meantime
            print(f"{folder.path}: finished already, skipped", flush=True)
            return
        memory = _measure(_control(spec))
        print(
            f"{spec.path}: {spec.plan.adjoint}, {memory['saved_bytes']:,} saved bytes", flush=True
        )
        result = _train(spec, folder, memory, origin["commit"])
        if result.finished:
            folder.write_summary({**summary(spec, memory, result), **origin})
            loss = result.final["train_loss"]
            seconds = result.iterations * result.seconds_per_iteration
            print(f"{_label(spec)}: loss {loss:.4g} in {seconds:,.1f} s -> {folder.path}")
    if not result.finished:
        print(f"stopped after {result.iterations} iterations; the same command goes on from there")


def check(config: DictConfig, overrides: list[str]) -> None:
    """Refuse what can be seen to be wrong before any work."""
    read(config, overrides)


def summary(spec: PdeSpec, memory: dict[str, int], result: TrainResult) -> dict[str, Any]:
    """The fields of summary.json, but for the provenance, which is taken when the run starts."""
    return {
        "experiment": spec.experiment,
        "model": "reaction_diffusion",
        "dataset": None,
        "variant": spec.plan.variant,
        "seed": spec.seed,
        "budget": spec.plan.budget,
        "scale": spec.config.scale,
        "keep_fraction": spec.plan.keep_fraction,
        "bits": spec.plan.bits,
        "batch_size": 1,
        "memory": memory,
        "final": result.final,
        "iterations": result.iterations,
        "seconds_per_iteration": result.seconds_per_iteration,
        **machine(spec.device),
        **result.provenance(),
    }


def _label(spec: PdeSpec) -> str:
    """A run in a few words: experiment, variant, budget, seed."""
    budget = "" if spec.config.budget == "full" else f" {spec.config.budget}"
    return f"{spec.experiment} {spec.plan.variant}{budget} s{spec.seed}"


def _control(spec: PdeSpec) -> Control:
    return Control(spec.problem, spec.plan.adjoint, spec.seed).to(spec.device)


def _measure(control: Control) -> dict[str, int]:
    """Bytes of theta, of what a forward pass saves, and at the worst moment of an iteration."""
    return {
        "parameter_bytes": parameter_bytes(control),
        "saved_bytes": saved_bytes(lambda: control(0)),
        "peak_bytes": peak_bytes(lambda: control(0).backward()),
    }


def _train(spec: PdeSpec, folder: RunFolder, memory: dict[str, int], commit: str) -> TrainResult:
    config, plan = spec.config, spec.plan
    info = RunInfo(
        path=spec.path.relative_to(config.results_root).as_posix(),
        title=_label(spec).removeprefix(f"{spec.experiment} "),
        group=spec.experiment,
        job="control",
        tags=("reaction_diffusion", plan.variant, str(config.scale)),
        config=OmegaConf.to_container(OmegaConf.create(spec.text)),  # type: ignore[arg-type]
        plan={
            "adjoint": str(plan.adjoint),
            "keep_fraction": plan.keep_fraction,
            "bits": plan.bits,
            **memory,
        },
        constant=("learning_rate",),
        root=str(config.results_root),
    )
    shown = Shown(_label(spec), memory["saved_bytes"], **_cli.place_in_sweep())
    logger = follow(config.logger, info)
    try:
        return train(_control(spec), spec.settings, folder, logger, commit=commit, shown=shown)
    finally:
        logger.finish()


if __name__ == "__main__":
    _cli.run(_cli.Script(main, check), "pde", _cli.CONFIGS / "pde")
