"""The state of an interrupted run, such that it resumes bit for bit.

Kept are all parameters and all named buffers, persistent or not (counters that drive random draws
are buffers), the optimizer, the sampler's generator and torch's global ones (dropout draws from
them), the rows so far, the time so far, the configuration's text, and the run's segments.

A checkpoint carries a digest of itself, and the one before it stays beside it: where the newer is
damaged, the run goes on from the older.
"""

import io
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from rad.errors import UsageError
from rad.results import RunFolder, difference, seal, write_atomic
from rad.training.ranks import ALONE, Ranks
from rad.training.saved_state import KEYS, LATER, Expected, problem, problem_of_optimizer
from rad.training.segments import Segment

Row = dict[str, int | float | None]
"""A row of metrics.csv; None where nothing was evaluated."""


@dataclass
class Progress:
    """Updates done, seconds spent on them (evaluation excluded), rows of metrics.csv so far.

    `segments` are those so far (`rad.training.segments`); none where nothing was restored.
    """

    iteration: int = 0
    seconds: float = 0.0
    rows: list[Row] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)


def save(
    folder: RunFolder,
    model: nn.Module,
    optimizer: Optimizer,
    generator: torch.Generator,
    progress: Progress,
    ranks: Ranks = ALONE,
) -> None:
    """Write the checkpoint whole or not at all; the one there was becomes the previous one.

    The first of several `ranks` writes it. Of what is sharded it holds the whole, so that any
    number of processes of that configuration can go on with it.
    """
    tensors, optimizer_state = ranks.whole(_tensors(model)), ranks.whole(optimizer.state_dict())
    if not ranks.first:
        return
    buffer = io.BytesIO()
    state = {
        "config": folder.config_file.read_text(),
        "model": tensors,
        "optimizer": optimizer_state,
        "generators": _generator_states(generator),
        "iteration": progress.iteration,
        "seconds": progress.seconds,
        "rows": progress.rows,
        "segments": progress.segments,
    }
    torch.save(state, buffer)
    write_atomic(folder.checkpoint_file, seal.seal(buffer), keep=folder.previous_checkpoint_file)


def restore(
    folder: RunFolder,
    model: nn.Module,
    optimizer: Optimizer,
    generator: torch.Generator,
    expected: Expected,
    ranks: Ranks = ALONE,
) -> Progress:
    """Bring everything to the state of the folder's checkpoint; without one, change nothing.

    `model` is as it was when the run started. Of several `ranks` the first reads it for all.

    Raises:
        UsageError: both checkpoints are damaged, or the one to go on from belongs to another
            configuration, model or kind of device, or has been edited.
    """
    remedy = f"delete {folder.path}/checkpoint*.pt to start this run afresh, or use another folder"
    file, state, lost = ranks.decided(
        lambda: _checked(folder, model, optimizer, generator, expected, remedy)
    )
    if state is None:
        return Progress()
    try:
        _set(model, optimizer, generator, state)
    except (RuntimeError, TypeError, ValueError) as error:
        cause = type(error).__name__
        raise UsageError(f"{file} is damaged or was edited ({cause}); {remedy}") from error
    if lost and ranks.first:
        os.replace(file, folder.checkpoint_file)
        word = f"{folder.path}: {lost}; the run goes on from the one before"
        print(f"{word}, at iteration {state['iteration']}", file=sys.stderr, flush=True)
    segments = state.get("segments", [{"from": 0}])
    return Progress(state["iteration"], float(state["seconds"]), state["rows"], segments)


def _checked(
    folder: RunFolder,
    model: nn.Module,
    optimizer: Optimizer,
    generator: torch.Generator,
    expected: Expected,
    remedy: str,
) -> tuple[Path, Any, str]:
    """As `_read`, once the checkpoint is known to be this run's. Raises as `restore`."""
    file, state, lost = _read(folder)
    if state is None:
        return file, None, lost
    if not isinstance(state, dict) or not KEYS <= state.keys() <= KEYS | LATER:
        raise UsageError(f"{file} is not a checkpoint of this program; {remedy}")
    if difference(state["config"], folder.config_file.read_text()):
        raise UsageError(f"{file} belongs to another configuration; {remedy}")
    mismatch = _mismatch(_tensors(model), state["model"])
    if mismatch:
        raise UsageError(f"{file} belongs to another model ({mismatch}); {remedy}")
    states = _generator_states(generator)
    if not isinstance(state["generators"], dict) or state["generators"].keys() != states.keys():
        raise UsageError(f"{file} belongs to a run on another kind of device; {remedy}")
    wrong = problem(state, expected, states) or problem_of_optimizer(
        state["optimizer"], optimizer, model, state["model"], state["iteration"]
    )
    if wrong:
        raise UsageError(f"{file} is damaged or was edited ({wrong}); {remedy}")
    return file, state, lost


def _read(folder: RunFolder) -> tuple[Path, Any, str]:
    """The newest checkpoint that is whole, what it holds, and what is wrong with a newer one.

    None where there is no checkpoint at all.
    """
    there = [
        file for file in (folder.checkpoint_file, folder.previous_checkpoint_file) if file.exists()
    ]
    lost: list[str] = []
    for file in there:
        state, cause = _loaded(file)
        if cause is None:
            missing = "" if folder.checkpoint_file in there else "checkpoint.pt is missing"
            return file, state, " and ".join(lost) or missing
        lost.append(f"{file.name} is damaged or no checkpoint ({cause})")
    if lost:
        raise UsageError(
            f"{folder.path}: {' and '.join(lost)}; delete {folder.path}/checkpoint*.pt to start "
            "this run afresh, or use another results folder"
        )
    return folder.checkpoint_file, None, ""


def _loaded(file: Path) -> tuple[Any, str | None]:
    """What a file holds, or what is wrong with it."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UsageError(
            f"cannot read {file} ({error.strerror}); make it readable, or use another folder"
        ) from error
    cause = seal.damage(data)
    if cause is not None:
        return None, cause
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True), None
    except Exception as error:  # whatever torch makes of bytes that it has not written
        return None, type(error).__name__


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return dict(chain(model.named_parameters(), model.named_buffers()))


def _mismatch(model: Mapping[str, Tensor], saved: Any) -> str | None:
    if not isinstance(saved, dict) or not all(isinstance(v, Tensor) for v in saved.values()):
        return "it has no tensors"
    for name in sorted(model.keys() ^ saved.keys(), key=str):
        return f"{name} is {'missing' if name in model else 'unknown'}"
    for name, tensor in model.items():
        there, here = _kind(saved[name]), _kind(tensor)
        if there != here:
            return f"{name} is {there} there, {here} here"
    return None


def _kind(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)}"


def _set(
    model: nn.Module, optimizer: Optimizer, generator: torch.Generator, state: Mapping[str, Any]
) -> None:
    with torch.no_grad():
        for name, tensor in _tensors(model).items():
            tensor.copy_(state["model"][name])
    # Hyperparameters are the configuration's, and lie where this run's optimizer wants them.
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state["optimizer"]["state"], "param_groups": groups})
    _set_generators(generator, state["generators"])


def _generator_states(generator: torch.Generator) -> dict[str, Tensor]:
    device = generator.device
    states = {f"order {device.type}": generator.get_state(), "cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def _set_generators(generator: torch.Generator, states: Mapping[str, Any]) -> None:
    device = generator.device
    generator.set_state(states[f"order {device.type}"])
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
