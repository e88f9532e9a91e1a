"""The state of an interrupted run, such that it resumes bit for bit.

Kept are all parameters and all named buffers, persistent or not (counters that drive random draws
are buffers), the optimizer, the sampler's generator and torch's global ones (dropout draws from
them), the rows so far, the time so far and the configuration's text.
"""

import io
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from rad.errors import UsageError
from rad.results import RunFolder, difference, write_atomic

Row = dict[str, int | float | None]
"""A row of metrics.csv; None where nothing was evaluated."""

KEYS = {"config", "model", "optimizer", "generators", "iteration", "seconds", "rows"}


@dataclass
class Progress:
    """Updates done, seconds spent on them (evaluation excluded), rows of metrics.csv so far."""

    iteration: int = 0
    seconds: float = 0.0
    rows: list[Row] = field(default_factory=list)


def save(
    folder: RunFolder,
    model: nn.Module,
    optimizer: Optimizer,
    generator: torch.Generator,
    progress: Progress,
) -> None:
    """Write the checkpoint whole or not at all."""
    buffer = io.BytesIO()
    state = {
        "config": folder.config_file.read_text(),
        "model": _tensors(model),
        "optimizer": optimizer.state_dict(),
        "generators": _generator_states(generator),
        "iteration": progress.iteration,
        "seconds": progress.seconds,
        "rows": progress.rows,
    }
    torch.save(state, buffer)
    write_atomic(folder.checkpoint_file, buffer.getvalue())


def restore(
    folder: RunFolder, model: nn.Module, optimizer: Optimizer, generator: torch.Generator
) -> Progress:
    """Bring everything to the state of the folder's checkpoint; without one, change nothing.

    Raises:
        UsageError: the checkpoint is damaged, or belongs to another configuration, model or
            kind of device.
    """
    file = folder.checkpoint_file
    if not file.exists():
        return Progress()
    remedy = f"delete {file} to start this run afresh, or use another results folder"
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError) as error:
        cause = type(error).__name__
        raise UsageError(f"{file} is damaged or no checkpoint ({cause}); {remedy}") from error
    if not isinstance(state, dict) or state.keys() != KEYS:
        raise UsageError(f"{file} is not a checkpoint of this program; {remedy}")
    if difference(state["config"], folder.config_file.read_text()):
        raise UsageError(f"{file} belongs to another configuration; {remedy}")
    mismatch = _mismatch(_tensors(model), state["model"])
    if mismatch:
        raise UsageError(f"{file} belongs to another model ({mismatch}); {remedy}")
    if state["generators"].keys() != _generator_states(generator).keys():
        raise UsageError(f"{file} belongs to a run on another kind of device; {remedy}")
    with torch.no_grad():
        for name, tensor in _tensors(model).items():
            tensor.copy_(state["model"][name])
    # Hyperparameters are the configuration's, and lie where this run's optimizer wants them.
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state["optimizer"]["state"], "param_groups": groups})
    _set_generators(generator, state["generators"])
    return Progress(state["iteration"], state["seconds"], state["rows"])


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return dict(chain(model.named_parameters(), model.named_buffers()))


def _mismatch(model: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> str | None:
    for name in sorted(model.keys() ^ saved.keys()):
        return f"{name} is {'missing' if name in model else 'unknown'}"
    for name, tensor in model.items():
        there, here = _kind(saved[name]), _kind(tensor)
        if there != here:
            return f"{name} is {there} there, {here} here"
    return None


def _kind(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)}"


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
