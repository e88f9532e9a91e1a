"""Hydra's basic sweep, in which a bad job is found before the first job starts.

Where the configuration has `runs_per_process`, so many jobs are launched as one: the first of them,
which finds the others in `hydra.sweeper.beside`.

It writes no multirun.yaml: `rad.results` keeps each run's configuration beside its results.
Hydra loads sweepers from packages of this folder's name only.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from _cli import Script, encode
from _spec import check_runs_per_process
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from rad.errors import UsageError


@dataclass
class CheckedSweeperConfig:
    """Selected by `hydra/sweeper: checked`."""

    _target_: str = "hydra_plugins.checked_sweeper.CheckedSweeper"
    beside: str | None = None


class CheckedSweeper(Sweeper):
    """Runs the product of all swept values, after `Script.check` of every job."""

    hydra_context: HydraContext
    config: DictConfig
    launcher: Launcher

    def __init__(self, beside: str | None = None) -> None:
        """`beside` is for the jobs to read."""

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Take what Hydra hands over."""
        self.hydra_context = hydra_context
        self.config = config
        self.check = task_function.check if isinstance(task_function, Script) else None
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Check all jobs, then launch them; raises what a job has raised."""
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        given = {
            override.get_key_element(): override for override in parser.parse_overrides(arguments)
        }
        jobs = [list(job) for job in product(*map(_values, given.values()))]
        for job in jobs:
            self._check(job)
        for done in self.launcher.launch(self._grouped(jobs), initial_job_idx=0):
            _ = done.return_value

    def _grouped(self, jobs: list[list[str]]) -> list[list[str]]:
        count = OmegaConf.select(self.config, "runs_per_process", default=1)
        if check_runs_per_process(count) == 1:
            return jobs
        groups = [jobs[start : start + count] for start in range(0, len(jobs), count)]
        return [[*first, f"hydra.sweeper.beside={encode(rest)}"] for first, *rest in groups]

    def _check(self, job: list[str]) -> None:
        config = self.hydra_context.config_loader.load_sweep_config(self.config, job)
        overrides = list(config.hydra.overrides.task)
        with open_dict(config):
            del config["hydra"]
        if self.check is not None:
            self.check(config, overrides)


def _values(override: Override) -> Iterator[str]:
    key = override.get_key_element()
    if not override.is_sweep_override():
        yield f"{key}={override.get_value_element_as_str()}"
    elif override.is_discrete_sweep():
        yield from (f"{key}={value}" for value in override.sweep_string_iterator())
    else:
        raise UsageError(f"{override.input_line!r} is no list to sweep; write {key}=<a>,<b>,...")


ConfigStore.instance().store(
    group="hydra/sweeper", name="checked", node=CheckedSweeperConfig, provider="rad"
)
