"""Train one variant at one budget: `python scripts/train.py variant=different_sample budget=0.1`.

Any setting of configs/train/train.yaml can be given, and swept with -m. A finished run is skipped,
an interrupted one resumes.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import _cli  # first: see there
import torch
from _run_spec import RunSpec, defaults, read
from omegaconf import DictConfig, OmegaConf

from rad import slice_batches
from rad.data import Dataset, Text
from rad.errors import Several, UsageError
from rad.memory.paper import FLOAT, NETWORKS, paper_bytes
from rad.planning.carry_out import carry_out
from rad.planning.exact import blocks
from rad.planning.variants import Built, Plan, fit
from rad.processes.parent import ending_with_parent
from rad.processes.refusals import met
from rad.results import RunFolder, difference, locked, machine, provenance, write_atomic
from rad.training import (
    Interruption,
    Logger,
    NullLogger,
    Ranks,
    RunInfo,
    Shown,
    Strides,
    Task,
    TrainResult,
    follow,
    joined,
    side_by_side,
    strides,
)
from rad.training.ranks import ALONE
from rad.training.task import task_of

PAPER_SETTINGS = (("feedforward", "mnist"), ("convnet", "cifar10"), ("irnn", "sequential_mnist"))


@dataclass(frozen=True)
class Prepared:
    """A run that only needs to be trained."""

    spec: RunSpec
    folder: RunFolder
    built: Built
    run: Strides


def main(config: DictConfig, overrides: list[str]) -> None:
    """Plan, train and write one run."""
    together([(config, overrides)])


def together(jobs: Sequence[tuple[DictConfig, list[str]]]) -> None:
    """Plan, train and write several runs side by side."""
    train_specs([read(*job) for job in jobs], **_cli.place_in_sweep())


def train_specs(specs: Sequence[RunSpec], **place: Any) -> None:
    """Plan, train and write runs side by side; runs of one folder count once.

    `place` says where the first stands in a sweep, as `rad.training.Shown` has it.

    Where `training.parallel` is set, torchrun's processes train one run together.

    Raises:
        UsageError: a run cannot be planned, or has diverged, and the others have ended; `Several`
            where that is true of several.
    """
    origin, device = provenance(), specs[0].device
    datasets: dict[str, Dataset | Text | Task] = {}
    failed: dict[Path, UsageError] = {}
    ready: list[Prepared] = []
    different = {spec.path: spec for spec in specs}
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    with ExitStack() as stack, Interruption() as interruption:
        parallel = specs[0].config.training.parallel
        if parallel is not None:
            stack.enter_context(ending_with_parent())
        ranks = ALONE if parallel is None else stack.enter_context(joined(device, parallel, met))
        for index, spec in enumerate(different.values()):
            here = {**place, "number": place.get("number", 1) + index}
            try:
                run = _prepared(spec, datasets, stack, interruption, origin["commit"], here, ranks)
                ready += [] if run is None else [run]
            except UsageError as error:
                failed[spec.path] = error
        runs = [run.run for run in ready]
        for index, outcome in side_by_side(runs, device):
            if isinstance(outcome, UsageError):
                failed[ready[index].spec.path] = outcome
            elif ranks.first:
                _end(ready[index], outcome, len(ready), origin)
        if len(different) == 1:  # `joined` has a failure of all processes said once
            for only in failed.values():
                raise only
    if failed:
        raise Several([UsageError(f"{path}: {error}") for path, error in failed.items()])


def _prepared(
    spec: RunSpec,
    datasets: dict[str, Dataset | Text | Task],
    stack: ExitStack,
    interruption: Interruption,
    commit: str,
    place: dict[str, Any],
    ranks: Ranks,
) -> Prepared | None:
    """The planned run, whose folder and logger `stack` closes; None where it has finished."""
    folder = RunFolder(spec.path)
    if ranks.decided(folder.finished):
        ranks.say(_skipped(folder, spec))
        return None
    name, options = spec.config.dataset.name, spec.dataset_options
    key = f"{name} {options} {spec.config.data_root} {spec.device}"
    if key not in datasets:
        datasets[key] = ranks.after_first(spec.load)
    built = plan(spec, datasets[key], ranks)
    of_each = f", in each of {ranks.count} processes" if ranks.count > 1 else ""
    ranks.say(f"{spec.path}: {built.plan.describe()}{of_each}")
    logger: Logger = NullLogger()

    def claimed() -> bool:
        nonlocal logger
        stack.enter_context(folder.open(spec.text))
        if folder.finished():  # by another program, in the meantime
            return False
        logger = follow(spec.config.logger, run_info(spec, built))
        stack.callback(logger.finish)
        return True

    if not ranks.decided(claimed):
        ranks.say(_skipped(folder, spec))
        return None
    settings = replace(
        spec.settings, batch_size=built.batch_size, micro_batch=built.plan.micro_batch
    )
    run = strides(
        built.model,
        datasets[key],
        settings,
        spec.seed,
        folder,
        logger,
        commit=commit,
        interruption=interruption,
        shown=Shown(_label(spec), built.plan.memory.saved_bytes, **place),
        ranks=ranks,
        blocks=blocks(built.model),
    )
    return Prepared(spec, folder, built, run)


def _end(run: Prepared, result: TrainResult, count: int, origin: dict[str, Any]) -> None:
    """Mark a run as finished, if it is."""
    if result.finished:
        run.folder.write_summary({**summary(run.spec, run.built, result, count), **origin})
        seconds = result.iterations * result.seconds_per_iteration
        print(f"{_label(run.spec)}: {_final(result)} in {seconds:,.1f} s -> {run.folder.path}")
    else:
        print(f"stopped after {result.iterations} iterations; the same command goes on from there")


def _final(result: TrainResult) -> str:
    """What the test set was evaluated on beside the loss, and the training loss."""
    words = [f"training loss {result.final['train_loss']:.4g}"]
    for name, value in result.final.items():
        if name.startswith("test_") and name != "test_loss":
            shown = f"{100 * value:.2f} %" if name.endswith("accuracy") else f"{value:.4g}"
            words.insert(0, f"{name.replace('_', ' ')} {shown}")
    return ", ".join(words)


def plan(spec: RunSpec, dataset: Dataset | Text | Task, ranks: Ranks = ALONE) -> Built:
    """The converted model and how it meets the budget, measured on the first examples.

    Of several processes each has the budget for its part of the batch, as the first one plans it.
    """
    task, full = task_of(dataset), spec.settings.batch_size
    part = ranks.largest_part(full)
    batch = task.first(part)
    model = spec.model(dataset)
    if spec.config.slices is not None:
        slice_batches(model, spec.config.slices)
    model = model.to(spec.device)
    found = ranks.decided(
        lambda: fit(
            model,
            batch.inputs,
            task.loss_on(batch.targets),
            spec.budget,
            spec.config.variant.name,
            kind=spec.config.kind,
            allocation=spec.config.allocation,
            path=spec.config.path,
            recompute=False if spec.config.variant.name == "auto" else None,
            **{str(key): value for key, value in spec.config.variant.items() if key != "name"},
        )
    )
    smaller = found.batch_size < part
    size = found.batch_size * ranks.count if smaller else full
    return Built(carry_out(model, found, spec.seed, inplace=True), size, found)


def summary(spec: RunSpec, built: Built, result: TrainResult, count: int = 1) -> dict[str, Any]:
    """The fields of summary.json, but for the provenance, which is taken when the run starts.

    `count` runs have shared the process. The memory is each process's.
    """
    plan = built.plan
    return {
        "experiment": spec.experiment,
        "model": spec.config.model.name,
        "dataset": spec.config.dataset.name,
        "variant": plan.variant,
        "seed": spec.seed,
        "budget": plan.budget,
        "scale": spec.config.scale,
        "kind": plan.kind,
        "allocation": plan.allocation,
        "keep_fraction": plan.keep_fraction,
        **({} if plan.layers is None else {"layers": dict(plan.layers)}),
        **({} if plan.reason is None else {"reason": plan.reason}),
        "bits": plan.bits,
        "batch_size": built.batch_size,
        **({} if plan.micro_batch is None else {"micro_batch": plan.micro_batch}),
        **({} if not plan.recomputed else {"recomputed": list(plan.recomputed)}),
        **({} if plan.division is None else {"division": asdict(plan.division)}),
        **({} if plan.path is None else {"path": repr(plan.path)}),
        "memory": {"paper_bytes": _paper_bytes(spec, plan), **asdict(plan.memory)},
        "final": result.final,
        "iterations": result.iterations,
        "seconds_per_iteration": result.seconds_per_iteration,
        **machine(spec.device),
        **({} if count == 1 else {"runs_per_process": count}),
        **result.provenance(),
    }


def _paper_bytes(spec: RunSpec, plan: Plan) -> int | None:
    """The printed reading of Table 1; None where it has no cell.

    It has cells for the paper's networks on their data sets, with one keep fraction in all layers
    and nothing rounded.
    """
    setting = (spec.config.model.name, spec.config.dataset.name)
    smaller = spec.dataset_options.get("downsample", 1) != 1
    if setting not in PAPER_SETTINGS or smaller:
        return None
    if plan.memory.parameter_bytes != FLOAT * NETWORKS[setting[0]].parameters:
        return None
    if plan.layers is not None or plan.bits is not None:
        return None
    return paper_bytes(setting[0], plan.keep_fraction, plan.batch_size)


def check(config: DictConfig, overrides: list[str]) -> None:
    """Refuse what can be seen to be wrong without data."""
    read(config, overrides)


def after(configs: list[DictConfig]) -> None:
    """Write a page of each experiment of a sweep, beside its runs, and print where it is."""
    from rad.plotting.report import collect, page  # takes a second, at a sweep's end alone

    sweeps = {(str(config.results_root), str(config.experiment_name)) for config in configs}
    for root, experiment in sorted(sweeps):
        folder = Path(root) / experiment
        try:
            text = page(collect(root, [experiment]), experiment)
            with locked(folder / ".lock", wait=True):
                write_atomic(folder / "report.html", text.encode())
        except UsageError as error:
            print(f"there is no report of {folder}: {error}")
        else:
            print(f"{folder / 'report.html'} shows all runs of {experiment} in a browser")


def _skipped(folder: RunFolder, spec: RunSpec) -> str:
    """The line for a finished run; its config.yaml may be missing or from another version."""
    try:
        changed = difference(folder.config_file.read_text(), spec.text, defaults())
    except (OSError, ValueError):  # bytes that are no text among them
        changed = ""
    note = f"; its configuration differs in {changed}" if changed else ""
    return f"{folder.path}: finished already, skipped{note}"


def _label(spec: RunSpec) -> str:
    """A run in a few words: experiment, variant, budget, seed."""
    budget = "" if spec.budget == "full" else f" {spec.budget}"
    return f"{spec.experiment} {spec.config.variant.name}{budget} s{spec.seed}"


def run_info(spec: RunSpec, built: Built, job: str = "train") -> RunInfo:
    """What dashboards get of a run."""
    plan = built.plan
    config, memory = spec.config, asdict(plan.memory)
    used = {"batch_size": built.batch_size, "keep_fraction": plan.keep_fraction, "bits": plan.bits}
    notes = (config.model.name, config.dataset.name, plan.variant, config.scale)
    return RunInfo(
        path=spec.path.relative_to(config.results_root).as_posix(),
        title=_label(spec).removeprefix(f"{spec.experiment} "),
        group=spec.experiment,
        job=job,
        tags=tuple(str(note) for note in notes if note is not None),
        config=OmegaConf.to_container(OmegaConf.create(spec.text)),  # type: ignore[arg-type]
        plan={**used, **memory},
        constant=("learning_rate",) if spec.settings.decay_every is None else (),
        root=str(config.results_root),
    )


if __name__ == "__main__":
    _cli.run(_cli.Script(main, check, together, after), "train", _cli.CONFIGS / "train")
