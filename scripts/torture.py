"""Try to lose or falsify runs, and tell what came of it: `python scripts/torture.py`.

Kills at random moments, full and read-only disks, flipped bits, cut and edited files, nonsense on
every command line, and faults planted in a copy that the tests must notice. Prints each case that
was lost, and writes a table of how many were survived, refused in one line, or lost. Goes on where
it was stopped. Settings: configs/measure/torture.yaml.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import _cli  # first: see there
import torch
from _spec import rules_of
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from rad.errors import UsageError
from rad.results import locked, machine, make_folder, provenance, write_table
from rad.results.origin import REPOSITORY, whole_code
from rad.torture import planted_faults
from rad.torture.damage import Damage
from rad.torture.disks import Disks
from rad.torture.faults import Faults
from rad.torture.kills import Kills
from rad.torture.nonsense import Nonsense, Tree
from rad.torture.outcomes import Attack, Case, Outcome, Record, cases, table
from rad.torture.programs import preload
from rad.torture.session import Session, lost
from rad.torture.subjects import Stage

SCRIPTS = Path(__file__).resolve().parent
FAULTS = REPOSITORY / "tests" / "torture" / "faults.toml"


def main(config: DictConfig, overrides: list[str]) -> None:
    """Do the cases that are left, and write the table of all that were tried."""
    scratch = Path(config.scratch).resolve()
    make_folder(scratch, "scratch")
    with locked(scratch / ".lock"):
        _attack(config, scratch)


def _attack(config: DictConfig, scratch: Path) -> None:
    """As `main`, alone in that folder."""
    origin, conditions = provenance(), {"seed": config.seed, "code": whole_code()}
    record = Record(scratch / "cases.jsonl", conditions)
    preload(SCRIPTS, ("train", "train_pde", "tune"))
    stage = Stage(SCRIPTS, scratch)
    faults = Faults(planted_faults.read(FAULTS), REPOSITORY, scratch)
    every: list[Attack] = [Kills(stage), Disks(stage), Damage(stage), faults, nonsense()]
    wanted = [case for attack in every for case in _cases(attack, config.cases[attack.name])]
    random.Random(config.seed).shuffle(wanted)  # what a limit of time cuts off is of all kinds
    session = Session(record, wanted, config.seed, config.time_limit)
    left = len([case for case in wanted if case not in record.done])
    with closing(faults), tqdm(total=left, unit="case", disable=None) as bar:

        def tell(case: Case, outcome: Outcome) -> None:
            bar.update()

        done = session.run(every[-1:], every[:-1], config.workers, tell)
    found = table((case, record.done[case]) for case in wanted if case in record.done)
    print(found.to_string(index=False))
    summary = {"seed": config.seed, **machine(torch.device("cpu")), **origin}
    print(f"wrote {write_table(Path(config.output) / 'torture.csv', found, summary)}")
    if not done:
        print("stopped by the time limit; the same command goes on with the cases left")
    bad = lost(record)
    if bad:
        raise UsageError(f"{len(bad)} cases were lost: {'; '.join(bad)}")


def _cases(attack: Attack, count: int) -> list[Case]:
    return cases(attack, min(count, len(attack.kinds)) if attack.name == "fault" else count)


def nonsense() -> Nonsense:
    """Command lines of all scripts with a schema, up to their checks."""
    GlobalHydra.instance().clear()  # this script's own settings are read
    files = [file for file in SCRIPTS.glob("*.py") if not file.stem.startswith("_")]
    names = sorted(file.stem for file in files if "_cli.run(_cli.Script(" in file.read_text())
    rules = {name: rules_of(_cli.home_of(name)[1]) for name in names}
    return Nonsense(rules, settled, _cli.BAD_INPUT, _cli.one_line)


def settled(script: str, words: Sequence[str]) -> Tree:
    """The settings that a script would work with."""
    tree: Any = OmegaConf.to_container(_cli.validate(script, words), resolve=True)
    return tree


if __name__ == "__main__":
    _cli.run(_cli.Script(main), "torture", _cli.CONFIGS / "measure")
