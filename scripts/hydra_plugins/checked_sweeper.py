"""Hydra's basic sweep, in which bad jobs are found before the first job starts.

A job that fails later does not keep the others from being done.

Where the configuration has `runs_per_process`, so many jobs are launched as one: the first of them,
which finds the others in `hydra.sweeper.beside`.

It writes no multirun.yaml: `rad.results` keeps each run's configuration beside its results.
Hydra loads sweepers from packages of this folder's name only.
"""

import os
import pickle
import shutil
import signal
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from itertools import product
from typing import Any

from _cli import BAD_INPUT, Script, one_line
from _spec import check_settings, is_group, override_of, rules_of, without_defaults
from hydra._internal.config_loader_impl import get_overrides_dirname
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from rad.errors import Several, UsageError, first_line
from rad.processes import launched
from rad.processes.jobs import as_word
from rad.processes.signals import Stopped
from rad.processes.workers import STOPPED, watched
from rad.schema.near import keys_of
from rad.schema.rules import check
from rad.schema.training import RUNS_PER_PROCESS


@dataclass
class CheckedSweeperConfig:
    """Selected by `hydra/sweeper: checked`."""

    _target_: str = "hydra_plugins.checked_sweeper.CheckedSweeper"
    beside: str | None = None
    jobs: int = 1
    workers: int = 1


class CheckedSweeper(Sweeper):
    """Runs the product of all swept values, after `Script.check` of every job."""

    hydra_context: HydraContext
    config: DictConfig
    launcher: Launcher

    def __init__(self, beside: str | None = None, jobs: int = 1, workers: int = 1) -> None:
        """All are for the jobs to read: how many there are, and how many are done at a time."""

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Take what Hydra hands over."""
        if _target(config).endswith("BasicLauncher"):  # others compose in their workers
            loader: Any = _Composed(hydra_context.config_loader)
            hydra_context = HydraContext(config_loader=loader, callbacks=hydra_context.callbacks)
        self.hydra_context = hydra_context
        self.config = config
        self.check = task_function.check if isinstance(task_function, Script) else None
        self.after = task_function.after if isinstance(task_function, Script) else None
        self.checked: list[DictConfig] = []
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Check all jobs, then launch them; `Script.after` has the last word.

        Raises:
            UsageError: jobs that cannot be done, before one starts; or those that have failed, when
                all have ended.
            Stopped: a signal, when the jobs have saved where they are.
        """
        if launched.count() > 1:
            raise UsageError(
                "torchrun's processes train one run, and a sweep is many: leave out -m, or torchrun"
            )
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        given = {
            override.get_key_element(): override for override in parser.parse_overrides(arguments)
        }
        jobs = [list(job) for job in product(*map(_values, given.values()))]
        swept = [at for at, each in enumerate(given.values()) if each.is_sweep_override()]
        names = [" ".join(job[at] for at in swept) for job in jobs]
        own = [f"hydra.sweeper.jobs={len(jobs)}", f"hydra.sweeper.workers={self._workers()}"]
        _raise_all([line for job in jobs for line in self._bad([*job, *own])])
        groups = [[*group, *own] for group in self._grouped(jobs)]
        failed = []
        for index, outcome in enumerate(self._launched(groups)):
            if outcome == STOPPED:
                raise Stopped(signal.SIGTERM)
            label = f"{names[index]}: " if len(groups) == len(jobs) and names[index] else ""
            failed += [f"{label}{line}" for line in outcome]
        _raise_all(failed)
        if self.after is not None:
            self.after(self.checked)

    def _workers(self) -> int:
        """How many jobs the launcher does at a time."""
        count = OmegaConf.select(self.config, "hydra.launcher.n_jobs")
        several = count if isinstance(count, int) else 1
        return several if several > 0 else os.cpu_count() or 1

    def _launched(self, groups: list[list[str]]) -> list[Any]:
        """What the jobs return."""
        target = _target(self.config)
        if "Slurm" in target and shutil.which("srun") is None:
            raise UsageError(
                "hydra/launcher=submitit_slurm needs Slurm's srun, which is not installed here: "
                "choose joblib or submitit_local"
            )
        try:
            with watched() if "joblib" in target else nullcontext():
                done = self.launcher.launch(groups, initial_job_idx=0)
            return [each.return_value for each in done]
        except BAD_INPUT:
            raise
        except Exception as error:
            cause = f"{type(error).__name__}: {first_line(error)}"
            raise UsageError(
                f"the launcher has failed or lost a job ({cause}): check its settings; the same "
                "command goes on with what is unfinished"
            ) from error

    def _grouped(self, jobs: list[list[str]]) -> list[list[str]]:
        count = OmegaConf.select(self.config, "runs_per_process", default=1)
        check("runs_per_process", count, RUNS_PER_PROCESS)
        if count == 1:
            return jobs
        groups = [jobs[start : start + count] for start in range(0, len(jobs), count)]
        return [[*first, f"hydra.sweeper.beside={as_word(rest)}"] for first, *rest in groups]

    def _bad(self, job: list[str]) -> list[str]:
        """Why the job cannot be done, in a line."""
        try:
            self._check(job)
        except BAD_INPUT as error:
            known = keys_of(rules_of(self.config.hydra.job.config_name))
            return [one_line(error, known)]
        return []

    def _check(self, job: list[str]) -> None:
        config = self.hydra_context.config_loader.load_sweep_config(self.config, job)
        name = config.hydra.job.config_name
        given = config.hydra.overrides.task
        rules = rules_of(name)
        with open_dict(config):
            del config["hydra"]
        check_settings(config, rules)
        overrides = without_defaults(config, given, name)
        if self.check is not None:
            self.check(config, overrides)
        self.checked.append(config)


class _Composed:
    """Hydra's loader of configurations, which composes the jobs of a sweep once for all values.

    Composing takes longer than anything else about a tiny run. Jobs that differ in the values of
    settings alone, such as the seed, are copies of the first one's configuration with their own.
    What waits to be copied is pickled, which is a tenth as large.
    """

    def __init__(self, loader: ConfigLoader) -> None:
        self._loader = loader
        self._first: dict[tuple[str, ...], bytes] = {}

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> Any:
        """What a job's overrides make of a sweep's configuration."""
        given = [override_of(word) for word in sweep_overrides]
        values = [each for each in given if self._is_value(each)]
        alike = tuple(
            each.key_or_group if each in values else str(each.input_line) for each in given
        )
        if alike in self._first:
            config = pickle.loads(self._first[alike])
            with suppress(OmegaConfBaseException):  # Hydra has better words for what cannot be set
                for each in values:
                    OmegaConf.update(config, each.key_or_group, each.value(), merge=True)
                return _with_overrides(config, master_config, given)
        config = self._loader.load_sweep_config(master_config, sweep_overrides)
        self._first[alike] = pickle.dumps(config)
        return config

    def _is_value(self, override: Override) -> bool:
        """Whether it sets a setting that is there; not one that chooses or adds settings."""
        change = override.type == OverrideType.CHANGE and override.package is None
        several = override.is_sweep_override() or isinstance(override.value(), dict)
        return change and not several and not is_group(self._loader, override.key_or_group)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


def _with_overrides(
    config: DictConfig, master_config: DictConfig, given: Sequence[Override]
) -> DictConfig:
    """The configuration with what Hydra notes there of the overrides that made it."""
    own = [each for each in given if not each.is_hydra_override()]
    hydras = [each.input_line for each in given if each.is_hydra_override()]
    config.hydra.overrides.task = [each.input_line for each in own]
    config.hydra.overrides.hydra = [*master_config.hydra.overrides.hydra, *hydras]
    form = config.hydra.job.config.override_dirname
    config.hydra.job.override_dirname = get_overrides_dirname(
        own, kv_sep=form.kv_sep, item_sep=form.item_sep, exclude_keys=form.exclude_keys
    )
    return config


def _target(config: DictConfig) -> str:
    """The class of the launcher."""
    return str(OmegaConf.select(config, "hydra.launcher._target_"))


def _raise_all(lines: Sequence[str]) -> None:
    if lines:
        raise Several([UsageError(line) for line in dict.fromkeys(lines)])


def _values(override: Override) -> list[str]:
    key = override.get_key_element()
    if not override.is_sweep_override():
        return [f"{key}={override.get_value_element_as_str()}"]
    if not override.is_discrete_sweep():
        raise UsageError(f"{override.input_line!r} is no list to sweep; write {key}=<a>,<b>,...")
    values = [f"{key}={value}" for value in override.sweep_string_iterator()]
    if not values:
        raise UsageError(f"{override.input_line!r} gives no value; write {key}=<a>,<b>,...")
    return values


ConfigStore.instance().store(
    group="hydra/sweeper", name="checked", node=CheckedSweeperConfig, provider="rad"
)
