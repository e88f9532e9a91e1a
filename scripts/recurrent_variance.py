"""Gradient noise against the number of steps: `python scripts/recurrent_variance.py`.

E |dW_hat - dW|^2 / |dW|^2 for W_hh of the IRNN at its initial weights, on the first examples of
Sequential-MNIST: measured over independent keys, and in closed form (`rnn_weight_grad_variance`).
Writes recurrent_variance.csv, its provenance and a figure.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
import torch
import torch.nn.functional as F
from _cli import CONFIGS, Task, run
from _device import choose, name_of
from matplotlib.figure import Figure
from omegaconf import DictConfig
from torch import Tensor

from rad import data, models
from rad.data import Dataset
from rad.errors import UsageError
from rad.functional.recurrent import rnn, rnn_weight_grad_variance
from rad.models.irnn import IRNN
from rad.plotting import COLUMN_WIDTH, RC, STYLES, save
from rad.results import provenance, write_atomic
from rad.sketches import DifferentSample, Identity, Project, SameSample, Sketch, fold_in, make_key

SKETCHES = {
    "same_sample": SameSample,
    "different_sample": DifferentSample,
    "project": Project,
}


def main(config: DictConfig, overrides: list[str]) -> None:
    """Measure, print and write a row for each sketch and number of steps."""
    check(config, overrides)
    device, origin = choose(config.device), provenance()
    rows = []
    for downsample in config.downsample:
        options = {"downsample": downsample}
        dataset = data.load("sequential_mnist", config.data_root, device, **options)
        rows += rows_of(dataset, config)
    table = pd.DataFrame(rows)
    print(table.to_string(index=False))
    folder = Path(config.output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make {folder} ({error.strerror}); choose output=") from error
    text = io.StringIO()
    table.to_csv(text, index=False, lineterminator="\n")
    write_atomic(folder / "recurrent_variance.csv", text.getvalue().encode())
    settings = ("hidden", "keep_fraction", "batch_size", "draws", "seed")
    summary: dict[str, Any] = {name: config[name] for name in settings}
    summary |= {"device": name_of(device), "threads": torch.get_num_threads(), **origin}
    write_atomic(
        folder / "recurrent_variance.json", (json.dumps(summary, indent=2) + "\n").encode()
    )
    written = save(figure(pd.read_csv(folder / "recurrent_variance.csv")), config.figure)[0]
    print(f"wrote {folder / 'recurrent_variance.csv'} and {written}")


def check(config: DictConfig, overrides: list[str]) -> None:
    """Refuse what can be seen to be wrong without data."""
    for downsample in config.downsample:
        data.check_options("sequential_mnist", {"downsample": downsample})
    for name in ("hidden", "batch_size", "draws"):
        least = 2 if name == "draws" else 1
        if not isinstance(config[name], int) or config[name] < least:
            raise UsageError(f"{name} is {config[name]!r}; give a whole number of at least {least}")
    if not isinstance(config.keep_fraction, int | float) or not 0 < config.keep_fraction <= 1:
        raise UsageError(f"keep_fraction is {config.keep_fraction!r}; give a number in (0, 1]")


def rows_of(dataset: Dataset, config: DictConfig) -> list[dict[str, Any]]:
    """All sketches at one number of steps."""
    model = models.build(
        "irnn", dataset.image_shape, dataset.classes, config.seed, hidden=config.hidden
    )
    model.to(dataset.train_images.device)
    assert isinstance(model, IRNN)
    x, y = dataset.batch(torch.arange(config.batch_size, device=dataset.train_images.device))
    x = x.transpose(0, 1)
    base = make_key(config.seed, x.device)
    exact = gradient(model, x, y, Identity(), base)
    states, delta = backward_signals(model, x, y)
    rows = []
    for name, kind in SKETCHES.items():
        sketch = kind(config.keep_fraction)
        keys = (fold_in(base, i) for i in range(config.draws))
        noise = torch.stack(
            [(gradient(model, x, y, sketch, key) - exact).square().sum() for key in keys]
        )
        scale = exact.square().sum()
        predicted = rnn_weight_grad_variance(states, delta, sketch) / scale
        rows.append(
            {
                "sketch": name,
                "steps": len(x),
                "measured": f"{(noise.mean() / scale).item():.6g}",
                "standard_error": f"{(noise.std() / scale / config.draws**0.5).item():.3g}",
                "predicted": f"{predicted.item():.6g}",
            }
        )
    return rows


def gradient(model: IRNN, x: Tensor, y: Tensor, sketch: Sketch, key: Tensor) -> Tensor:
    """The estimate of W_hh's gradient that the key draws: (H, H)."""
    h0 = x.new_zeros(x.shape[1], model.rnn.hidden_size)
    weights = list(model.rnn.parameters())
    _, last = rnn(x, h0, *weights, sketch=sketch, key=key, return_sequence=False)
    (grad,) = torch.autograd.grad(F.cross_entropy(model.output(last), y), weights[1])
    return grad


def backward_signals(model: IRNN, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The states before each step, and the gradients of what enters the ReLU: each (T, B, H).

    The layer is run on what its input and biases add to a state, through the identity, so that
    the gradient of that input is the one looked for.
    """
    w_ih, w_hh, b_ih, b_hh = model.rnn.parameters()
    added = (x @ w_ih.t() + b_ih + b_hh).detach().requires_grad_()
    h0 = x.new_zeros(x.shape[1], len(w_hh))
    through = torch.eye(len(w_hh), device=x.device)
    sequence, last = rnn(added, h0, through, w_hh, sketch=Identity(), key=make_key(0, x.device))
    assert sequence is not None
    (delta,) = torch.autograd.grad(F.cross_entropy(model.output(last), y), added)
    return torch.cat([h0[None], sequence.detach()[:-1]]), delta


def figure(table: pd.DataFrame) -> Figure:
    """Relative variance against steps: closed form as lines, measured as markers with 2 errors."""
    with mpl.rc_context(RC):
        result = Figure(figsize=(COLUMN_WIDTH, 2.6), layout="constrained")
        axes = result.subplots()
        for name in SKETCHES:
            rows = table[table["sketch"] == name]
            colour, marker = STYLES[name]
            axes.plot(rows["steps"], rows["predicted"], color=colour)
            axes.errorbar(
                rows["steps"],
                rows["measured"],
                2 * rows["standard_error"],
                color=colour,
                marker=marker,
                markerfacecolor="none",
                linestyle="none",
                label=name.replace("_", " "),
            )
        axes.set(xscale="log", yscale="log", xlabel="steps", ylabel="relative variance")
        steps = sorted(set(table["steps"]))
        axes.set_xticks(steps, [str(count) for count in steps])
        axes.minorticks_off()
        axes.grid(color="0.9", linewidth=0.5)
        result.legend(
            loc="outside lower center",
            ncols=3,
            columnspacing=1,
            frameon=False,
            title="markers: measured; lines: closed form",
        )
    return result


if __name__ == "__main__":
    run(Task(main, check), "recurrent_variance", CONFIGS / "recurrent_variance")
