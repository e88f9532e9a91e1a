"""What every script shares: Hydra, with bad input reported in one line.

Bad input ends in one line on stderr and exit status 2, a signal in one line and status 128 + its
number; a bug keeps its traceback. A job of a sweep that fails does not keep the others from being
done; what has failed is listed at the end. Scripts import this first, for a quiet Ctrl-C.
"""

import importlib
import importlib.util
import inspect
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from rad.processes.signals import Stopped, end_while_loading, leave, stopped_first, stopping

end_while_loading(Path(__file__).resolve().parent)  # what follows takes seconds to load

import hydra
from _spec import check_settings, rules_of, without_defaults
from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rad.errors import Several, UsageError, first_line, out_of_memory
from rad.processes.jobs import of_word
from rad.processes.refusals import telling
from rad.processes.workers import STOPPED, worker
from rad.schema.help import help_text
from rad.schema.near import keys_of, nearest

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
BAD_INPUT = (UsageError, HydraException, OmegaConfBaseException)

Main = Callable[[DictConfig, list[str]], None]
Together = Callable[[list[tuple[DictConfig, list[str]]]], None]
After = Callable[[list[DictConfig]], None]


class Script:
    """A script's main function, as Hydra calls it.

    `main(config, overrides)` does one job; `check(config, overrides)` raises UsageError where it
    can tell cheaply that the job cannot be done. A sweep checks all jobs before the first starts.
    `together([(config, overrides), ...])` does several jobs in one process; `after([config, ...])`
    is called when all jobs of a sweep have been done.
    """

    def __init__(
        self,
        main: Main,
        check: Main | None = None,
        together: Together | None = None,
        after: After | None = None,
    ) -> None:
        self.main = main
        self.check = check
        self.together = together
        self.after = after

    def __reduce__(self) -> tuple[Callable[..., "Script"], tuple[Any, ...]]:
        """As file and names: a parallel launcher's workers load the script again."""
        parts = (self.check, self.together, self.after)
        others = [None if part is None else part.__name__ for part in parts]
        return load_script, (inspect.getfile(self.main), self.main.__name__, others, sys.argv)

    def __call__(self, config: DictConfig) -> list[str] | str | None:
        """Do the job, or end the program where that fails.

        A job of a sweep returns how it has failed, in lines (none where it has not), or `STOPPED`.
        """
        hydra_config = HydraConfig.get()
        checked = "beside" in hydra_config.sweeper  # by hydra_plugins/checked_sweeper.py
        if checked and hydra_config.mode == RunMode.MULTIRUN:
            return self._in_sweep(config)
        try:
            with stopped_first():
                check_settings(config, rules_of(hydra_config.job.config_name))
                self._do(config)
        except BAD_INPUT as error:
            refuse(error)
        except (MemoryError, RuntimeError) as error:
            refuse(out_of_memory(error))
        return None

    def _do(self, config: DictConfig) -> None:
        hydra_config = HydraConfig.get()
        name = str(hydra_config.job.config_name)
        beside = getattr(hydra_config.sweeper, "beside", None)
        overrides = without_defaults(config, hydra_config.overrides.task, name)
        if beside and self.together is not None:
            others = [(compose(name, job), job) for job in of_word(beside)]
            own = [(each, without_defaults(each, job, name)) for each, job in others]
            self.together([(config, overrides), *own])
        else:
            self.main(config, overrides)

    def _in_sweep(self, config: DictConfig) -> list[str] | str:
        try:
            with stopped_first() if (here := worker()) is None else here.job():
                self._do(config)
        except Stopped:
            if here is None:
                raise
            return STOPPED
        except BAD_INPUT as error:
            return lines_of(error)
        except Exception as error:
            try:
                return lines_of(out_of_memory(error))
            except Exception:
                traceback.print_exc()
            return [f"{type(error).__name__}: {first_line(error)} (a bug: its traceback is above)"]
        return []


def place_in_sweep() -> dict[str, Any]:
    """Of `rad.training.Shown`: which of how many jobs this process begins with."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return {}
    sweeper, number = HydraConfig.get().sweeper, HydraConfig.get().job.num
    if "jobs" not in sweeper:
        return {}
    beside = 1 if sweeper.beside is None else 1 + len(of_word(sweeper.beside))
    return {
        "number": number * beside + 1,
        "count": sweeper.jobs,
        "workers": sweeper.workers,
        "alone": worker() is None,
    }


def load_script(file: str, main: str, others: list[str | None], command: list[str]) -> Script:
    """The script of a file, by the names of its functions; `command` becomes sys.argv."""
    sys.argv = list(command)
    name = Path(file).stem
    module = sys.modules.get(name)
    if module is None:
        spec = importlib.util.spec_from_file_location(name, file)
        if spec is None or spec.loader is None:
            raise ImportError(f"{file} is no Python script")
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    parts = [None if part is None else getattr(module, part) for part in others]
    return Script(getattr(module, main), *parts)


def home_of(script: str) -> tuple[Path, str]:
    """The folder and the name of the configuration that a script runs on, by its last line.

    Raises UsageError for a file that is no such script.
    """
    file = Path(__file__).with_name(f"{script}.py")
    entry = r'run\(_cli.Script\([\w, ]*\), "([\w/]+)", _cli.CONFIGS / "(\w+)"\)'
    found = re.search(entry, file.read_text())
    if found is None:
        raise UsageError(f"{file.name} runs on no configuration")
    return CONFIGS / found[2], found[1]


def composed(script: str, overrides: Sequence[str]) -> DictConfig:
    """What a script's command line makes of its configuration."""
    folder, name = home_of(script)
    check_overrides(overrides, folder)
    with initialize_config_dir(str(folder), version_base="1.3"):
        return compose(name, overrides=list(overrides))


def validate(script: str, overrides: Sequence[str]) -> DictConfig:
    """What a script checks before it works. Raises what it raises."""
    config = composed(script, overrides)
    check_settings(config, rules_of(home_of(script)[1]))
    own = getattr(importlib.import_module(script), "check", None)
    if own is not None:
        own(config.copy(), list(overrides))
    return config


def run(script: Script, config_name: str, folder: Path) -> None:
    """Run `script` on what the command line makes of `<folder>/<config_name>.yaml`."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions reach us as they are
    _share_modules_with_workers()
    sys.argv[1:] = [experiment_of(argument, folder) for argument in sys.argv[1:]]
    main = hydra.main(version_base="1.3", config_path=str(folder), config_name=config_name)(script)
    try:
        with stopping():
            given = get_args_parser().parse_args()
            check_overrides(given.overrides, folder)
            if given.help:
                print(_help(script, config_name, folder, given.overrides), end="")
            else:
                main()
            sys.stdout.flush()
    except BAD_INPUT as error:
        refuse(error, keys_of(rules_of(config_name)))
    except BrokenPipeError:  # who reads has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except (Stopped, KeyboardInterrupt) as stopped:
        leave(getattr(stopped, "number", signal.SIGINT))


def experiment_of(argument: str, folder: Path) -> str:
    """`experiment=` and `+experiment=` are one: the group where there is one, else the setting."""
    word = re.match(r"\+?experiment=", argument)
    if word is None:
        return argument
    return f"{'+' if (folder / 'experiment').is_dir() else ''}{argument.lstrip('+')}"


def _help(script: Script, config_name: str, folder: Path, overrides: Sequence[str]) -> str:
    with initialize_config_dir(str(folder), version_base="1.3"):
        config = compose(config_name, overrides=list(overrides))
    settings: Any = OmegaConf.to_container(config, resolve=True)
    file = Path(inspect.getfile(script.main)).stem
    title = inspect.getmodule(script.main).__doc__ or ""
    return help_text(file, title, folder, config_name, settings)


def check_overrides(overrides: Sequence[str], folder: Path) -> None:
    """Raises UsageError where Hydra would drop a choice of the command line, or merge choices.

    A group (a folder of choices below `folder`) has one name; several are a sweep. Of other
    settings the last one counts, as always with Hydra, whose own settings are left to it.
    """
    given: dict[str, str] = {}
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.get_key_element().lstrip("+")
        group = folder / override.key_or_group
        if override.is_delete() or re.match(r"hydra\b", key) or not group.is_dir():
            continue
        line = str(override.input_line)
        if key in given:
            raise UsageError(
                f"{key} is given twice, as {given[key]!r} and {line!r}; give it once, or sweep "
                f"over several values: -m {override.get_key_element()}=<a>,<b>"
            )
        given[key] = line
        _check_choice_of(override, key, sorted(file.stem for file in group.glob("*.yaml")))


def _check_choice_of(override: Override, key: str, choices: Sequence[str]) -> None:
    """Raises UsageError where the override gives a group anything but names, or settings of it."""
    value = override.value()
    for one in value.list if isinstance(value, ChoiceSweep) else [value]:
        if isinstance(one, list):
            names = ",".join(map(str, one)) if len(one) > 1 else "<a>,<b>"
            raise UsageError(
                f"{override.input_line!r} gives a list, where {key} takes one name; a sweep over "
                f"several is -m {override.get_key_element()}={names}"
            )
        if one is None or isinstance(one, bool | int | float):
            raise UsageError(
                f"{override.input_line!r} names no {key}: choose one of {', '.join(choices)}"
            )


def _share_modules_with_workers() -> None:
    """Let processes of parallel launchers import what lies beside the scripts."""
    before = os.environ.get("PYTHONPATH")
    here = str(Path(__file__).parent)
    os.environ["PYTHONPATH"] = here if not before else os.pathsep.join([here, before])


def end(main: Callable[[Sequence[str]], int]) -> NoReturn:
    """Run the main function of a script with a parser of its own; its result is the exit status."""
    try:
        with stopping():
            sys.exit(main(sys.argv[1:]))
    except BAD_INPUT as error:
        refuse(error)
    except Stopped as stopped:
        leave(stopped.number)


def refuse(error: Exception, known: Sequence[str] = ()) -> NoReturn:
    """Print one line for the error, or one for each of several, and exit with status 2.

    `known` are the settings that the script has. Of processes that have not met, one prints.
    """
    with telling(error) as tells:
        if tells:
            print(*(f"error: {line}" for line in lines_of(error, known)), sep="\n", file=sys.stderr)
    sys.exit(2)


def lines_of(error: Exception, known: Sequence[str] = ()) -> list[str]:
    """The messages of an error, each in one line."""
    errors = error.errors if isinstance(error, Several) else [error]
    return [one_line(each, known) for each in errors]


def one_line(error: Exception, known: Sequence[str] = ()) -> str:
    """The error's message in one line; Hydra's names the choices and where settings are shown.

    Of the `known` settings it names the one that was probably meant.
    """
    show = f"python scripts/{Path(sys.argv[0]).name} --help shows all settings"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        if group and error.options:
            return f"unknown {group} {name!r}: choose one of {', '.join(error.options)}"
    words = " ".join(str(error).split())
    if isinstance(error, UsageError):
        return words
    cause = "" if error.__cause__ is None else first_line(error.__cause__)
    if isinstance(error, OverrideParseException):
        return f"cannot read {error.override!r} ({words}); write key=value, quoted where need be"
    ambiguous = re.match(r"(?:Ambiguous value for argument|Sweep parameters) '([^']+)'", words)
    if ambiguous:
        override = ambiguous[1]
        return f"{override!r} is a sweep: write -m {override} (--multirun); a list stands in []"
    unknown = re.match(r"Could not override '([^']+)'", words)
    if unknown:
        meant = nearest(unknown[1], known)
        probably = "" if meant is None else f"did you mean {meant}=...? "
        return f"unknown setting {unknown[1]!r}: {probably}{show}"
    return f"{': '.join(dict.fromkeys(filter(None, (words, cause))))} ({show})"
