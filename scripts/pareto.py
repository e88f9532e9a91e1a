"""RAD beside what else saves memory, at equal memory and equal time: `python scripts/pareto.py`.

Memory and the time of a step are measured here (programs take turns); losses and gradient noise are
those of finished runs and of scripts/gradient_noise.py, or scripts/pde_variance.py. Gradient
accumulation, checkpointing and the compiled network have the exact gradient, hence the baseline's
noise and losses by iteration.
Settings: configs/pareto/pareto.yaml.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from _cli import CONFIGS, Task, run
from _device import choose, name_of
from _pde_programs import PdeProgram, adjoints_by_variant, pde_programs
from _programs import PROGRAMS, Program, programs
from omegaconf import DictConfig

from rad.benchmarks.pareto import losses, mean_curve, on_front
from rad.benchmarks.timing import alternate, ratio_of_medians
from rad.errors import UsageError
from rad.memory import peak_bytes, saved_bytes
from rad.pde import ReactionDiffusion
from rad.plotting import EXACT, pareto_figure, save, select_overrides
from rad.results import metrics, provenance, summaries, write_atomic


def main(config: DictConfig, overrides: list[str]) -> None:
    """Look up, measure, print, and write a table, its provenance and a figure."""
    file, networks = Path(config.output) / "pareto.csv", list(config.networks)
    if not config.measure and not file.exists():
        raise UsageError(f"{file} is missing; set measure=true to measure first")
    _make(file.parent)
    known = {name: _known(name, config) for name in networks}
    summary = None
    if config.measure:
        device, origin = choose(config.device), provenance()
        measured = pd.concat([_measured(name, config, device) for name in networks])
        summary = {"device": name_of(device), "threads": torch.get_num_threads(), **origin}
    else:
        measured = pd.read_csv(file)
    tables = [_joined(name, measured, *known[name]) for name in networks]
    if not config.measure:
        tables.append(measured[~measured["network"].isin(networks)])
    table = pd.concat(tables)
    figure = pareto_figure(table)
    text = io.StringIO()
    table.to_csv(text, index=False, lineterminator="\n")
    write_atomic(file, text.getvalue().encode())
    if summary is not None:
        write_atomic(file.with_suffix(".json"), (json.dumps(summary, indent=2) + "\n").encode())
    print(table.to_string(index=False, float_format="{:.3g}".format))
    print(f"wrote {file} and {save(figure, config.figure)[0]}")


PDE = "pde"
MEASURED = ("batch_size", "saved_bytes", "peak_bytes", "time_ratio", "rounds")


def _measured(network: str, config: DictConfig, device: torch.device) -> pd.DataFrame:
    """Bytes and time of each method; time against the first one's."""
    settings = config.networks[network]
    compared = _programs(network, config, device)
    seconds = alternate({name: p.step for name, p in compared.items()}, settings.rounds)
    first = seconds[next(iter(compared))]
    rows: list[dict[str, Any]] = []
    for name, program in compared.items():
        program.clear()
        rows.append({"network": network, "method": name, "batch_size": program.batch_size})
        rows[-1] |= {
            "saved_bytes": saved_bytes(program.loss),
            "peak_bytes": peak_bytes(program.step),
            "time_ratio": round(ratio_of_medians(seconds[name], first), 3),
            "rounds": settings.rounds,
        }
    return pd.DataFrame(rows)


def _programs(
    network: str, config: DictConfig, device: torch.device
) -> Mapping[str, Program | PdeProgram]:
    settings = config.networks[network]
    if network == PDE:
        problem = ReactionDiffusion(**settings.problem)
        adjoints = adjoints_by_variant(problem, settings.keep_fraction, settings.variants, device)
        return pde_programs(problem, adjoints, 1, device)
    options = (network, settings.keep_fraction, config.batch_size, device)
    names = [name for name in PROGRAMS if name != "dense_reference"]
    return programs(*options, names=names, shape=tuple(settings.shape))


def _known(network: str, config: DictConfig) -> tuple[dict[str, pd.Series], dict[str, float]]:
    """The losses and the gradient noise that there are, by variant."""
    settings = config.networks[network]
    noise = _pde_noise if network == PDE else _noise
    return _curves(settings, config), noise(settings, config)


def _joined(
    network: str, measured: pd.DataFrame, curves: dict[str, pd.Series], noise: dict[str, float]
) -> pd.DataFrame:
    """The network's rows with variance and losses, where they are known."""
    table = measured.loc[measured["network"] == network, ["network", "method", *MEASURED]]
    table = table.reset_index(drop=True)
    if table.empty:
        raise UsageError(f"the table has no rows of {network}; set measure=true to measure it")
    ratios = dict(zip(table["method"], table["time_ratio"], strict=True))
    curves = {m: curves[v] for m in ratios if (v := _variant(m)) in curves}
    found = losses(curves, ratios) if curves else {}
    nothing = (float("nan"), float("nan"))
    table["variance_ratio"] = [noise.get(_variant(m), float("nan")) for m in table["method"]]
    table["loss"] = [found.get(m, nothing)[0] for m in table["method"]]
    table["loss_at_equal_time"] = [found.get(m, nothing)[1] for m in table["method"]]
    for column in ("loss", "loss_at_equal_time"):
        table[f"front_{column}"] = on_front(table["saved_bytes"], table[column])
    return table


def _variant(method: str) -> str:
    """Whose losses and noise a method has."""
    return "baseline" if method in EXACT else method


def _curves(settings: DictConfig, config: DictConfig) -> dict[str, pd.Series]:
    """The losses of finished runs at the budget, by variant."""
    curves = {}
    for experiment in settings.experiments:
        try:
            runs = summaries(config.results_root, experiment)
        except UsageError:
            continue
        runs = _at_budget(runs[runs["scale"] == settings.scale], settings)
        rows = metrics(config.results_root, experiment)
        for variant, of_variant in runs.groupby("variant"):
            chosen = _with_options(of_variant, str(variant), settings)
            if chosen.empty:
                continue
            try:
                found = select_overrides(rows[rows["path"].isin(chosen["path"])])
            except UsageError as error:
                raise UsageError(
                    f"{variant} in {experiment}: {error}; keep those of one"
                ) from error
            curves[str(variant)] = mean_curve(found, settings.loss)
    return curves


def _with_options(table: pd.DataFrame, variant: str, settings: DictConfig) -> pd.DataFrame:
    """The rows of a variant that have the options with which the network's settings compare it."""
    table = table[table["variant"] == variant]
    for entry in settings.get("variants", []):
        for key, value in entry.items():
            if entry.name == variant and key != "name" and key in table:
                table = table[table[key] == value]
    return table


def _at_budget(table: pd.DataFrame, settings: DictConfig) -> pd.DataFrame:
    """The rows at the network's budget, and those of full memory."""
    return table[table["budget"].astype(str).isin(["full", str(settings.keep_fraction)])]


def _noise(settings: DictConfig, config: DictConfig) -> dict[str, float]:
    """Variance of the gradient over that of the full batch, by variant."""
    file = Path(config.results_root) / "gradient_noise" / f"{settings.noise}.csv"
    if settings.noise is None or not file.exists():
        return {}
    table = pd.read_csv(file)
    table = table[(table["weight"] == "all weights") & (table["iteration"] == settings.point)]
    total = _at_budget(table, settings).set_index("variant")["total"]
    return dict(total / total["baseline"])


def _pde_noise(settings: DictConfig, config: DictConfig) -> dict[str, float]:
    """Variance of the gradient over its square, by variant."""
    if settings.noise is None:
        return {}
    file = Path(config.results_root) / settings.noise / "cpu.csv"
    if not file.exists():
        return {}
    table = _at_budget(pd.read_csv(file), settings)
    found: dict[str, float] = {}
    for variant in table["variant"].unique():
        rows = _with_options(table, variant, settings)
        if len(rows) > 1:
            raise UsageError(f"{file} has several rows of {variant}: give its options in variants")
        ratio = rows[f"noise_{settings.point}"] / rows[f"norm_{settings.point}"]
        found |= {str(variant): value**2 for value in ratio}
    return found


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make {folder} ({error.strerror}); choose output=") from error


if __name__ == "__main__":
    run(Task(main), "pareto", CONFIGS / "pareto")
