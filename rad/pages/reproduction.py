"""Which commands train and draw each figure and table of the paper afresh."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rad.errors import UsageError
from rad.pages.runs import Runs
from rad.pages.words import table

FIVE = "variant=baseline,reduced_batch,same_sample,different_sample,project"
SIX = f"{FIVE},different_project"
ROOT = "{root}"
SCALE = "{scale}"
PAPER = "paper"
"""The scale that experiments have by themselves."""


@dataclass(frozen=True)
class Reproduction:
    """A figure or table: its name on the command line, what it shows, and the commands.

    In the commands `{root}` is the folder of results, `{scale}` sets an experiment's scale, by
    default `scale`, `{drawn}` chooses the runs of that scale to draw, and `{film}` the times of a
    simulation that is cut short.
    """

    name: str
    shows: str
    commands: tuple[str, ...]
    page: str
    file: str
    committed: str
    status: str
    scale: str = ""

    def lines(self, root: str, scale: str = "") -> list[str]:
        """The commands, ready to run.

        Raises:
            UsageError: a scale for what has none.
        """
        if scale and not self.scale:
            raise UsageError(f"{self.name} has no scales; leave --scale out")
        chosen = "" if (scale or self.scale) in ("", PAPER) else f"scale={scale or self.scale}"
        drawn = f"\"overrides='{chosen}'\"" if chosen else ""
        film = "film_times=[0,0.5,1.5]" if chosen == "scale=smoke" else ""
        values = {"root": root, "scale": chosen, "drawn": drawn, "film": film}
        filled = (command.format(**values) for command in self.commands)
        return [" ".join(command.split()) for command in filled]


def _trained(
    name: str, shows: str, experiment: str, runs: str, draw: str, status: str, scale: str
) -> Reproduction:
    train = f"python scripts/train.py -m +experiment={experiment} {SCALE} {runs}"
    where = f"results_root={ROOT} output={ROOT}/plots/{experiment}.png"
    plot = f"python scripts/plot.py experiment={experiment} {{drawn}} {draw} {where}"
    page = f"reproduce/{'fractions' if name == 'fractions' else f'fig{name}'}"
    commands = (f"{train} results_root={ROOT}", plot)
    source = f"{experiment}/*/*{'scale=cpu' if scale == 'cpu' else ''}"
    file = f"plots/{experiment}.png"
    return Reproduction(name, shows, commands, page, file, source, status, scale)


REPRODUCTIONS: Sequence[Reproduction] = (
    Reproduction(
        "1",
        "figures 1 and 2: graphs, and variance against depth",
        (f"python scripts/path_sampling.py output={ROOT}/path_sampling figures={ROOT}/plots",),
        "reproduce/figures1_2",
        "plots/figure1.png",
        "path_sampling",
        "complete",
    ),
    _trained(
        "5a",
        "figure 5a: CIFAR-10",
        "fig5a_cifar10",
        f"seed=0,1 {FIVE}",
        "column=bootstrap_loss",
        "3,200 of 100,000 iterations, 2 of 5 bootstraps",
        "cpu",
    ),
    _trained(
        "5b",
        "figure 5b: MNIST",
        "fig5b_mnist",
        f"seed=0,1,2,3,4 {FIVE}",
        "column=bootstrap_loss",
        "at the paper's scale",
        "paper",
    ),
    _trained(
        "5c",
        "figure 5c: Sequential-MNIST",
        "fig5c_seqmnist",
        f"seed=0,1,2 {SIX}",
        "",
        "49 of 784 steps, 10,000 of 200,000 iterations; the smaller batch differs",
        "cpu",
    ),
    Reproduction(
        "6",
        "figure 6: reaction and diffusion",
        (
            "python scripts/train_pde.py -m variant=baseline,different_sample "
            f"budget=0.1,0.01,0.005,0.002,0.001 seed=0,1,2 {SCALE} results_root={ROOT}",
            f"python scripts/plot_pde.py {{drawn}} results_root={ROOT} output={ROOT}/plots/fig6 "
            "variance=null {film}",
        ),
        "reproduce/fig6",
        "plots/fig6b.png",
        "fig6_pde",
        "at the paper's scale",
        "paper",
    ),
    _trained(
        "fractions",
        "appendix: keep fractions on MNIST",
        "fractions_mnist",
        f"seed=0,1 budget=0.05,0.1,0.3,0.5,0.8 {FIVE}",
        "figure=budgets column=bootstrap_loss",
        "at the paper's scale, 2 of 5 bootstraps; CIFAR-10: not run",
        "paper",
    ),
    Reproduction(
        "noise",
        "appendix: gradient noise",
        (
            "python scripts/gradient_noise.py model=feedforward dataset=mnist {scale} "
            f"noise.output={ROOT}/gradient_noise noise.figure={ROOT}/plots/gradient_noise.png "
            f"noise.checkpoints={ROOT}/scratch",
        ),
        "gradient_noise",
        "plots/gradient_noise_feedforward_mnist.png",
        "gradient_noise",
        "MNIST complete; CIFAR-10 scaled down; recurrent: not measured",
        "paper",
    ),
    Reproduction(
        "table1",
        "Table 1: memory",
        (f"python scripts/memory_table.py output={ROOT}/table1 figure={ROOT}/plots/table1.png",),
        "reproduce/table1",
        "plots/table1.png",
        "table1",
        "measured; the paper calculated it by hand",
    ),
)


def reproduction(name: str) -> Reproduction:
    """The one of that name.

    Raises:
        UsageError: there is none; the message has all names.
    """
    for each in REPRODUCTIONS:
        if each.name == name.lower().removeprefix("fig"):
            return each
    names = ", ".join(each.name for each in REPRODUCTIONS)
    raise UsageError(f"no figure or table {name!r}; choose one of {names}")


def index(runs: Runs, here: str) -> str:
    """The table of all: what it shows, the command, minutes of one core, figure, status.

    `here` leads from the page to the folder `docs`: `docs/`, or `../`.
    """
    rows = []
    up = "../" * (1 + here.count("..")) if here.startswith("..") else ""
    for each in REPRODUCTIONS:
        trained = any((runs.root / each.committed.split("/")[0]).glob("*/*/*/summary.json"))
        minutes = f"{runs.minutes(each.committed):,.0f}" if trained else "not recorded"
        rows.append(
            [
                f"[{each.shows}]({here}{each.page}.md)",
                f"`make reproduce FIG={each.name}`",
                minutes,
                f"[figure]({up}{each.file})",
                each.status,
            ]
        )
    return table(["what", "command", "minutes of one core", "file", "status"], rows)
