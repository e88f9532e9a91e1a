"""Tables that only one page has."""

from __future__ import annotations

from collections.abc import Callable

from rad.pages.runs import Runs
from rad.pages.words import significant, table

TEN = (
    ("auto", "0.1", "beyond_mnist_seeds", 1.10),
    ("stochastic_rounding", "0.1", "beyond_mnist_seeds", 1.10),
    ("auto", "0.05", "beyond_mnist_seeds", 1.30),
    ("stochastic_rounding", "0.05", None, 2.0),
)
"""Variant, budget, where the later seeds are, and the goal that was set beforehand."""

NOISY = {
    "`StochasticRounding(bits)`": lambda rad, bits: rad.StochasticRounding(bits),
    "`DitheredRounding(bits)`": lambda rad, bits: rad.DitheredRounding(bits),
    "`DifferentSample(bits / 32, replacement=False)`": lambda rad, bits: rad.DifferentSample(
        bits / 32, replacement=False
    ),
}


def headlines(runs: Runs) -> dict[str, Callable[..., object]]:
    """The tables by name."""
    return {"ten_seeds": lambda: ten_seeds(runs), "gaussian_noise": gaussian_noise}


def ten_seeds(runs: Runs) -> str:
    """Final losses over full memory's on MNIST: five seeds, five more, all, and the goal."""
    first, more = "fig5b_mnist/baseline/*", "beyond_mnist_seeds/baseline/*"
    rows = []
    for variant, budget, later, goal in TEN:
        source = f"beyond_mnist/{variant}/budget={budget}"
        cells = [runs.interval(source, first), "", ""]
        if later:
            other = f"{later}/{variant}/budget={budget}"
            cells[1:] = [
                runs.interval(other, more),
                runs.interval(f"{source}+{other}", f"{first}+{more}"),
            ]
        end = float((cells[2] or cells[0]).rpartition(" ")[2].rstrip(")"))
        met = "met" if end < goal else "missed"
        rows.append([f"`{variant}`", budget, *cells, f"{goal:.2f}, {met}"])
    header = ["variant", "budget", "the first five seeds", "five more", "all ten", "goal"]
    return table(header, rows)


def gaussian_noise(rows: int = 200, d: int = 256) -> str:
    """E |x_hat - x|^2 / |x|^2 for normal x in closed form, at some bits a number."""
    import torch

    import rad

    x = torch.randn(rows, d, generator=torch.Generator().manual_seed(0))
    bits = (8, 4, 3, 2, 1)
    norm = x.square().sum()
    return table(
        ["sketch", *(f"{each} bit{'s' if each > 1 else ''}" for each in bits)],
        (
            [name, *(significant(float(make(rad, each).variance(x) / norm), 2) for each in bits)]
            for name, make in NOISY.items()
        ),
    )
