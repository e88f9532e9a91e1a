"""Two processes that train one run: `python together.py FOLDER` prints as JSON what they did.

What torchrun tells its processes, these are told here: they are forked from one that has loaded
everything, as loading takes longer than all else.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _cli
import torch
import train
from calling import SCRIPTS, home_of
from torch import distributed, nn
from training import tiny_run

import rad
from rad import data
from rad.results import RunFolder
from rad.sketches import DifferentSample
from rad.training import NullLogger, Ranks, Settings, joined, strides
from rad.training.batches import Sampler
from rad.training.loop import _backward
from rad.training.task import Classification

CPU = torch.device("cpu")
FEW = ("model.hidden=[6]", "optimizer.iterations=30", "training.evaluate_every=10")
FEW += ("logger.mode=disabled", "device=cpu")


def started(
    count: int, work: Callable[[], Any], folder: Path, given: bool = True
) -> list[tuple[int, Path]]:
    """So many processes that do that work, and where their output goes; as torchrun has them."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(count):
        file = folder / f"output-{port}-{rank}"
        pid = os.fork()
        if pid:
            processes.append((pid, file))
            continue
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port}
        if given:
            os.environ.update({name: str(value) for name, value in names.items()})
            os.environ["MASTER_ADDR"] = "localhost"
        with file.open("wb") as stream:
            for number in (1, 2):
                os.dup2(stream.fileno(), number)
        status = 1
        try:
            status = work() or 0
        except SystemExit as end:
            status = int(end.code or 0)
        except BaseException:
            traceback.print_exc()
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(status)
    return processes


def ended(processes: list[tuple[int, Path]]) -> list[tuple[int, str]]:
    """The status of each, negative where a signal has killed it, and what it has printed."""
    statuses = {pid: os.waitpid(pid, 0)[1] for pid, _ in processes}
    return [(os.waitstatus_to_exitcode(statuses[pid]), file.read_text()) for pid, file in processes]


def script(*arguments: str) -> Callable[[], None]:
    """What `scripts/train.py` does with those arguments."""

    def work() -> None:
        sys.argv = [str(SCRIPTS / "train.py"), *FEW, *arguments]
        folder, config = home_of("train")
        _cli.run(_cli.Script(train.main, train.check, train.together, train.after), config, folder)

    return work


def calls(count: int, folder: Path, *arguments: str, **options: Any) -> list[tuple[int, str]]:
    """What so many processes come to with those arguments of train.py."""
    return ended(started(count, script(f"results_root={folder}", *arguments), folder, **options))


def killed(folder: Path, number: int, *arguments: str) -> list[tuple[int, str]]:
    """The same, where the second of two gets that signal after some updates."""
    both = started(2, script(f"results_root={folder}", *arguments), folder)
    while not any(len(file.read_text().splitlines()) > 3 for file in folder.rglob("metrics.csv")):
        time.sleep(0.01)
    os.kill(both[1][0], number)
    return ended(both)


def gradients(rank: int, count: int) -> list[torch.Tensor]:
    """The gradient of a batch of 15 that `count` processes have of theirs, of them `rank`."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 10))
    model = rad.convert(layers, DifferentSample(0.3), seed=3)
    task, ranks = Classification(data.load("digits")), Ranks(rank, count)
    if not distributed.is_initialized():
        for layer in model.modules():
            if isinstance(layer, rad.nn.Linear):
                layer.replica = rank
    averaging = ranks.averaging(model) if distributed.is_initialized() else model
    _backward(averaging, task, Sampler(task.size(), 15, 0, CPU), ranks, None)
    return [p.grad for p in model.parameters() if p.grad is not None]


def averaged_as_the_keys_say() -> int:
    """Whether the gradient of two is the weighed mean of what each has with its own draws."""
    alone = [gradients(rank, 2) for rank in range(2)]
    with joined(CPU) as ranks:
        found = gradients(ranks.rank, ranks.count)
        for p, q, mean in zip(*alone, found, strict=True):
            assert torch.allclose((p + q) / 2, mean, atol=1e-6)
        assert not torch.equal(alone[0][0], alone[1][0])
        word = ranks.apart(lambda: torch.rand(1), seed=0, done=0)()
        assert ranks.most(word.item(), -word.item()) != [word.item(), -word.item()]
    return 0


def any_model(folder: Path, limit: float | None) -> Callable[[], int]:
    """A network with batch normalisation, dropout and a counter, on a bootstrap sample."""

    def work() -> int:
        settings = Settings(**(vars(tiny_run.SETTINGS) | {"iterations": 60, "time_limit": limit}))
        with joined(CPU) as ranks, contextlib.ExitStack() as stack:
            run = RunFolder(folder)
            if ranks.first:
                stack.enter_context(run.open(tiny_run.CONFIG))
            ranks.decided(lambda: None)
            digits, model = data.load("digits"), tiny_run.network()
            for _ in strides(model, digits, settings, 5, run, NullLogger(), ranks=ranks):
                pass
            ranks.decided(lambda: None)
        return 0

    return work


def results(folder: Path) -> dict[str, Any]:
    """By scenario: how each process ended."""
    found: dict[str, Any] = {}
    ddp, rounding = "training.parallel=ddp", ("variant=different_sample", "budget=0.3")
    exact = ("variant=baseline", "batch_size=15", "training.bootstrap=true")
    found["one"] = calls(1, folder / "one", *exact, given=False)
    found["two"] = calls(2, folder / "two", *exact, ddp)
    found["again"] = calls(2, folder / "two", *exact, ddp)
    found["unbroken"] = calls(2, folder / "unbroken", *rounding, ddp)
    often = ("training.checkpoint_every=5",)
    found["lost"] = killed(folder / "lost", signal.SIGKILL, *rounding, ddp, *often)
    found["lost, again"] = calls(2, folder / "lost", *rounding, ddp)
    found["asked"] = killed(folder / "asked", signal.SIGTERM, *rounding, ddp)
    found["asked, by one"] = calls(
        1, folder / "asked", *rounding, ddp, "training.strict_resume=true"
    )
    found["asked, again"] = calls(2, folder / "asked", *rounding, ddp)
    smaller = ("variant=reduced_batch", "budget=0.3", ddp)
    found["smaller"] = calls(2, folder / "smaller", *smaller, "training.time_limit=1e-9")
    found["smaller, by one"] = calls(1, folder / "smaller", *smaller)
    found["null"] = calls(2, folder / "refused")
    found["no torchrun"] = calls(1, folder / "refused", ddp, given=False)
    found["sweep"] = calls(2, folder / "refused", ddp, "-m", "seed=0,1")
    found["tiny batch"] = calls(2, folder / "refused", ddp, "batch_size=1", "variant=baseline")
    found["tiny budget"] = calls(2, folder / "refused", ddp, "budget=2000")
    found["gradient"] = ended(started(2, averaged_as_the_keys_say, folder))
    for name, limits in {"any": [None], "any, resumed": [1e-9, 1e-9, None]}.items():
        runs = [ended(started(2, any_model(folder / name, limit), folder)) for limit in limits]
        found[name] = [process for run in runs for process in run]
    return found


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    data.load("digits")
    for name in ("one", "two", "unbroken", "lost", "asked", "smaller", "refused"):
        (folder / name).mkdir()
    print(json.dumps(results(folder)))


if __name__ == "__main__":
    main()
