"""Two processes that train one run: `python together.py FOLDER` prints as JSON how they ended.

What torchrun tells its processes, these are told here: they are forked from one that has loaded
everything, as loading takes longer than all else. It must see no CUDA device.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import _cli
import pytest
import torch
import train
from calling import SCRIPTS, home_of
from torch import Tensor, nn
from training import tiny_run

import rad
from rad import data
from rad.errors import ReportedElsewhere, UsageError
from rad.processes.signals import Stopped, leave, stopping
from rad.results import RunFolder
from rad.sketches import DifferentSample
from rad.training import Interruption, NullLogger, Ranks, Settings, joined, strides
from rad.training.batches import Sampler
from rad.training.loop import _backward
from rad.training.task import Classification

CPU = torch.device("cpu")
Ended = list[tuple[int, str]]
SETTINGS = replace(tiny_run.SETTINGS, iterations=60, batch_size=15, checkpoint_every=5)
"""In parts of 7 and 8 examples, with clipping and on a bootstrap sample."""


def started(work: Callable[[], int], folder: Path) -> list[tuple[int, Path]]:
    """Two processes that do that work, and where their output goes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(2):
        file = folder / f"output-{port}-{rank}"
        pid = os.fork()
        if pid:
            processes.append((pid, file))
            continue
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_PORT": port}
        os.environ |= {name: str(value) for name, value in names.items()}
        os.environ["MASTER_ADDR"] = "localhost"
        with file.open("wb") as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
        status = 1
        try:
            status = work()
        except SystemExit as end:
            status = int(end.code or 0)
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(status)
    return processes


def ended(processes: list[tuple[int, Path]]) -> Ended:
    """The status of each, negative where a signal has killed it, and what it has printed."""
    statuses = {pid: os.waitpid(pid, 0)[1] for pid, _ in processes}
    return [(os.waitstatus_to_exitcode(statuses[pid]), file.read_text()) for pid, file in processes]


def exact() -> nn.Module:
    """A network whose gradients are those of one process."""
    torch.manual_seed(5)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.Tanh(), nn.Linear(24, 10))


def noisy() -> nn.Module:
    """One with sketches, dropout, batch normalisation and a counter of its own."""
    return rad.convert(tiny_run.network(), DifferentSample(0.3), seed=1)


def run(
    ranks: Ranks, folder: Path, model: nn.Module, settings: Settings = SETTINGS, pause: float = 0
) -> None:
    """Train in that folder, until it ends or a signal comes."""
    with ExitStack() as stack:
        if ranks.first:
            stack.enter_context(RunFolder(folder).open(tiny_run.CONFIG))
        ranks.decided(lambda: None)
        interruption = stack.enter_context(Interruption())
        for _ in strides(
            model,
            data.load("digits"),
            settings,
            5,
            RunFolder(folder),
            NullLogger(),
            on_backward=lambda n: time.sleep(pause),
            interruption=interruption,
            ranks=ranks,
        ):
            pass
        ranks.decided(lambda: None)


def slow(folder: Path) -> Callable[[], int]:
    """A run that is there to be ended; with the words of the command line."""

    def work() -> int:
        try:
            with stopping(), joined(CPU) as ranks:
                run(ranks, folder, noisy(), pause=0.02)
        except UsageError as error:
            _cli.refuse(error)
        except Stopped as stopped:
            leave(stopped.number)
        return 0

    return work


def killed(folder: Path, number: int) -> Ended:
    """Such a run whose second process gets that signal after some updates."""
    folder.mkdir()
    both = started(slow(folder), folder.parent)
    while not any(file.read_text().count("\n") > 3 for file in folder.rglob("metrics.csv")):
        time.sleep(0.01)
    os.kill(both[1][0], number)
    return ended(both)


def gradients(model: nn.Module, ranks: Ranks) -> list[Tensor]:
    """Those by the first batch; of `ranks` each has its part."""
    task = Classification(data.load("digits"))
    sampler = Sampler(task.size(), 15, 0, CPU)
    _backward(model, task, [sampler.draw()], sampler.generator, ranks, None)
    return [p.grad for p in model.parameters() if p.grad is not None]


def sketching(replica: int | None) -> nn.Module:
    model = rad.convert(exact(), DifferentSample(0.3), seed=3)
    for layer in model.modules():
        if isinstance(layer, rad.nn.Linear):
            layer.replica = replica
    return model


def check_gradients(ranks: Ranks) -> None:
    """That of both is the weighed mean of what each has by its own draws."""
    alone = [gradients(sketching(rank), Ranks(rank, ranks.count)) for rank in range(2)]
    found = gradients(ranks.averaging(sketching(None)), ranks)
    for p, q, mean in zip(*alone, found, strict=True):
        assert torch.allclose((p + q) / 2, mean, atol=1e-6)
    assert not torch.equal(*(torch.cat([g.flatten() for g in each]) for each in alone))


def check_draws(ranks: Ranks) -> None:
    """Those from torch's global generator are each process's own, and come again."""
    torch.manual_seed(0)
    draws = []
    for done in (0, 1, 0):
        torch.manual_seed(0)
        draws.append(ranks.apart(lambda: torch.rand(1).item(), seed=0, done=done)())
    assert draws[0] == draws[2]
    assert ranks.first == (draws[0] == draws[1])
    assert ranks.most(draws[0]) != [-each for each in ranks.most(-draws[0])]


def check_refusals(ranks: Ranks) -> None:
    """The first process has the words for the user, the other raises what is not told again."""
    expected = UsageError if ranks.first else ReportedElsewhere
    few = "the batch has 1 examples for 2 processes"
    for word, work in {
        "no": lambda: ranks.decided(_refuse),
        few: lambda: ranks.check(batch=1),
    }.items():
        with pytest.raises(UsageError, match=word) as raised:
            work()
        assert type(raised.value) is expected


def _refuse() -> None:
    raise UsageError("no")


class Unused(nn.Linear):
    """A parameter that no output depends on."""

    def forward(self, input: Tensor) -> Tensor:
        return input


def everything(folder: Path) -> Callable[[], int]:
    """What one pair of processes can do after the other; the last is refused."""

    def work() -> int:
        try:
            with joined(CPU) as ranks:
                check_gradients(ranks)
                check_draws(ranks)
                check_refusals(ranks)
                run(ranks, folder / "exact", exact())
                run(ranks, folder / "unbroken", noisy())
                for name in ("lost", "asked"):
                    run(ranks, folder / name, noisy())
                run(ranks, folder / "unused", nn.Sequential(exact(), Unused(1, 1)))
        except UsageError as error:
            _cli.refuse(error)
        return 0

    return work


def script(*arguments: str) -> Callable[[], int]:
    """What `scripts/train.py` does with those arguments."""

    def work() -> int:
        sys.argv = [str(SCRIPTS / "train.py"), *arguments]
        folder, config = home_of("train")
        _cli.run(_cli.Script(train.main, train.check, train.together, train.after), config, folder)
        return 0

    return work


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)

    run(Ranks(), folder / "loads loops", noisy(), replace(SETTINGS, iterations=1))
    found = {
        "lost": killed(folder / "lost", signal.SIGKILL),
        "asked": killed(folder / "asked", signal.SIGTERM),
        "everything": ended(started(everything(folder), folder)),
    }
    tiny = ("model.hidden=[6]", "optimizer.iterations=4", "logger.mode=disabled", "device=cpu")
    own = ("training.parallel=ddp", "batch_size=15", f"results_root={folder / 'script'}")
    smaller = ("variant=reduced_batch", "budget=0.3")
    found["script"] = ended(started(script(*tiny, *own, *smaller), folder))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
