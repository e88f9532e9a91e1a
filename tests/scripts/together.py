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
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from pathlib import Path

import _cli
import pytest
import torch
import train
from calling import SCRIPTS, home_of
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.optim import SGD
from training import tiny_run

import rad
from rad import data
from rad.errors import ReportedElsewhere, UsageError
from rad.planning.exact import blocks
from rad.processes.refusals import met
from rad.processes.signals import Stopped, leave, stopping
from rad.results import RunFolder
from rad.sketches import DifferentSample, Sketch
from rad.training import Interruption, NullLogger, Ranks, Settings, joined, strides
from rad.training.batches import Sampler
from rad.training.loop import _backward
from rad.training.ranks import PARALLEL
from rad.training.sharding import gathered
from rad.training.task import Classification

CPU = torch.device("cpu")
Ended = list[tuple[int, str]]
SETTINGS = replace(
    tiny_run.SETTINGS, iterations=60, batch_size=15, checkpoint_every=5, evaluation_batch=718
)
"""In parts of 7 and 8 examples, with clipping and on a bootstrap sample; of 1,437 images the second
process evaluates 719, in one pass more than the first needs."""
SKETCH = DifferentSample(0.3)
DRAWS = 240
REFUSED = {
    "null": (),
    "sweep": ("-m", "training.parallel=ddp", "seed=0,1"),
    "graph": ("training.parallel=ddp", "training.cuda_graph=true"),
    "fused": ("training.parallel=fsdp", "optimizer=sgd", "optimizer.fused=true"),
}
"""What no processes do, by what is wrong with it."""


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


class Residual(nn.Module):
    """A block, which has parameters of its own to gather. Shapes: (B, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.inner(x))


def exact(width: int = 24) -> nn.Module:
    """A network whose gradients are those of one process."""
    torch.manual_seed(5)
    within = Residual(width), Residual(width)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), *within, nn.Linear(width, 10))


def noisy() -> nn.Module:
    """One with sketches, dropout, batch normalisation and a counter of its own."""
    network = tiny_run.network()
    for _ in range(2):
        network.insert(len(network) - 1, Residual(24))
    return rad.convert(network, SKETCH, seed=1)


def run(
    ranks: Ranks,
    folder: Path,
    model: nn.Module,
    settings: Settings = SETTINGS,
    on_backward: Callable[[int], None] | None = None,
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
            on_backward=on_backward,
            interruption=interruption,
            ranks=ranks,
            blocks=blocks(model),
        ):
            pass
        ranks.decided(lambda: None)


def slow(folder: Path, parallel: str) -> Callable[[], int]:
    """A run that is there to be ended; with the words of the command line."""

    def work() -> int:
        try:
            with stopping(), joined(CPU, parallel, met) as ranks:
                run(ranks, folder, noisy(), on_backward=lambda _: time.sleep(0.02))
        except UsageError as error:
            _cli.refuse(error)
        except Stopped as stopped:
            leave(stopped.number)
        return 0

    return work


def killed(folder: Path, number: int, parallel: str) -> Ended:
    """Such a run whose second process gets that signal after some updates."""
    folder.mkdir()
    both = started(slow(folder, parallel), folder.parent)
    while not any(file.read_text().count("\n") > 3 for file in folder.rglob("metrics.csv")):
        time.sleep(0.01)
    os.kill(both[1][0], number)
    return ended(both)


@cache
def _digits() -> Classification:
    return Classification(data.load("digits"))


def gradients(model: nn.Module, ranks: Ranks) -> list[Tensor]:
    """Those by the first batch; of `ranks` each has its part."""
    task = _digits()
    sampler = Sampler(task.size(), 15, 0, CPU)
    _backward(model, task, [sampler.draw()], sampler.generator, ranks, None)
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return list(gathered(found, keep=True).values())


def averaged(model: nn.Module, ranks: Ranks) -> nn.Module:
    """The model, as they train it."""
    return ranks.averaging(model, SGD(model.parameters(), 1.0), blocks(model))


def sketching(replica: int | None, width: int = 24, sketch: Sketch = SKETCH) -> nn.Module:
    model = rad.convert(exact(width), sketch, seed=3)
    for layer in model.modules():
        if isinstance(layer, rad.nn.Linear):
            layer.replica = replica
    return model


def check_gradients(ranks: Ranks) -> None:
    """That of both is the weighed mean of what each has by its own draws."""
    alone = [gradients(sketching(rank), Ranks(rank, ranks.count)) for rank in range(2)]
    found = gradients(averaged(sketching(None), ranks), ranks)
    for p, q, mean in zip(*alone, found, strict=True):
        assert torch.allclose((p + q) / 2, mean, atol=1e-6)
    assert not torch.equal(*(torch.cat([g.flatten() for g in each]) for each in alone))


def write_draws(ranks: Ranks, file: Path) -> None:
    """Gradients of both by one batch, draw after draw (DRAWS, P), and the true one (P,)."""
    model = averaged(sketching(None, 8, DifferentSample(0.5)), ranks)
    samples = []
    for _ in range(DRAWS):
        model.zero_grad()
        samples.append(torch.cat([each.flatten() for each in gradients(model, ranks)]))
    truth = torch.cat([each.flatten() for each in gradients(exact(8), Ranks())])
    if ranks.first:
        torch.save((torch.stack(samples), truth), file)


def check_shards(ranks: Ranks) -> None:
    """Each holds half of the numbers; a block that shares a parameter is left to the whole."""
    model = averaged(exact(), ranks)
    whole = sum(p.numel() for p in model.parameters())
    own = sum(p.to_local().numel() for p in model.parameters() if isinstance(p, DTensor))
    assert abs(own - whole / 2) < 0.02 * whole
    assert [isinstance(model[at], FSDPModule) for at in range(5)] == [
        False,
        False,
        True,
        True,
        False,
    ]
    tied = exact()
    tied[2].inner.weight = tied[3].inner.weight
    tied.append(Residual(10))
    averaged(tied, ranks)
    assert [isinstance(tied[at], FSDPModule) for at in (2, 3, 5)] == [False, False, True]


def check_nothing_whole_is_held(ranks: Ranks, folder: Path) -> None:
    """While a sharded model is trained, none of its whole parameters is alive."""
    model, alive = exact(), list[int]()
    whole = [weakref.ref(parameter) for parameter in model.parameters()]

    def count(_: int) -> None:
        alive.append(sum(each() is not None for each in whole))

    run(ranks, folder, model, replace(SETTINGS, iterations=2), count)
    assert alive == [0, 0], alive


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


class Outside(nn.Module):
    """One that looks into a block."""

    def __init__(self) -> None:
        super().__init__()
        self.model = exact()

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = self.model(input)
        return output + self.model[2].inner.bias[:10]


def everything(folder: Path, parallel: str) -> Callable[[], int]:
    """What one pair of processes can do after the other; the last is refused."""
    short = replace(SETTINGS, time_limit=1e-9)

    def work() -> int:
        try:
            with joined(CPU, parallel, met) as ranks:
                check_gradients(ranks)
                check_draws(ranks)
                check_refusals(ranks)
                write_draws(ranks, folder / "draws.pt")
                run(ranks, folder / "exact", exact())
                run(ranks, folder / "cut", exact(), short)
                run(ranks, folder / "unbroken", noisy())
                run(ranks, folder / "lost", noisy())
                if ranks.sharded:
                    check_shards(ranks)
                    check_nothing_whole_is_held(ranks, folder / "shards")
                    run(replace(ranks, parallel="ddp"), folder / "crossed", noisy(), short)
                    run(ranks, folder / "crossed", noisy())
                    run(ranks, folder / "unused", nn.Sequential(exact(), Unused(1, 1)))
                    run(ranks, folder / "outside", Outside())
                run(ranks, folder / "asked", noisy())
                run(ranks, folder / "unused", nn.Sequential(exact(), Unused(1, 1)))
        except UsageError as error:
            _cli.refuse(error)
        return 0

    return work


def script(*arguments: str, second: tuple[str, ...] = ()) -> Callable[[], int]:
    """What `scripts/train.py` does with those arguments; the `second` process has others, too."""

    def work() -> int:
        own = second if os.environ["RANK"] == "1" else ()
        sys.argv = [str(SCRIPTS / "train.py"), *arguments, *own]
        folder, config = home_of("train")
        _cli.run(_cli.Script(train.main, train.check, train.together, train.after), config, folder)
        return 0

    return work


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)

    run(Ranks(), folder / "loads loops", noisy(), replace(SETTINGS, iterations=1))
    found = {}
    for parallel in PARALLEL:
        own = folder / parallel
        own.mkdir()
        found[f"lost {parallel}"] = killed(own / "lost", signal.SIGKILL, parallel)
        if parallel == "ddp":
            found["asked"] = killed(own / "asked", signal.SIGTERM, parallel)
        found[f"everything {parallel}"] = ended(started(everything(own, parallel), own))
    tiny = ("model.hidden=[6]", "optimizer.iterations=4", "logger.mode=disabled", "device=cpu")
    given = (*tiny, "batch_size=15", f"results_root={folder / 'script'}")
    smaller = ("training.parallel=ddp", "variant=reduced_batch", "budget=0.3")
    found["script ddp"] = ended(started(script(*given, *smaller), folder))
    found["script fsdp"] = ended(started(script(*given, "training.parallel=fsdp"), folder))
    for name, arguments in REFUSED.items():
        found[name] = ended(started(script(*arguments), folder))
    other = script(*given, "training.parallel=ddp", second=("nonsense=1",))
    found["refused by one"] = ended(started(other, folder))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
