"""Everything that needs a GPU, in order of value and in the time there is: `make gpu`.

    python scripts/gpu.py time_limit=540 [workers=8 ...] [--dry-run] [--archive PATH]

Runs the tests marked `cuda`, the benchmarks, Table 1 and gradient noise as measured there, each
alone, then the paper-scale results that are missing, several runs side by side. A measurement for
which too little time is left waits for the next call; a run resumes with it. Leaves results/ ready
to commit; --archive packs what is new, checkpoints included, to go on from elsewhere. Needs no
network, installation or git (the commit is $RAD_COMMIT where there is none), and of packages only
torch with Triton, torchvision, numba, pandas, matplotlib and hydra-core; without pytest the tests
are skipped. Settings: configs/gpu.yaml.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tarfile
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import _cli  # first: see there
from _gpu_jobs import REPOSITORY, Job, jobs
from _spec import check_settings, rules_of
from omegaconf import DictConfig, OmegaConf

from rad.errors import UsageError
from rad.processes.signals import Stopped
from rad.results import write_atomic
from rad.schema.values import choose_device

LEAST_SLICE = 5.0
"""Seconds below which no run is started any more."""


def main(arguments: Sequence[str]) -> int:
    """The exit status: 1 where a job failed, 128 + signal where one has ended it."""
    options = _parser().parse_args(arguments)
    config = settings(options.settings)
    planned = jobs(config, _device(config.device, options.dry_run))
    if options.dry_run:
        print(listing(planned, config))
        return 0
    started = time.time()
    work = Work(config, started)
    try:
        work.all(planned)
    except Stopped as stopped:
        work.stopped_by = stopped.number
    finally:
        work.stop()
        if options.archive is not None:
            count = archive(options.archive, [config.results_root, config.plots_root], started)
            print(f"{count} new files in {options.archive}", flush=True)
    left = sum(not job.finished() for job in planned)
    print(f"{len(planned) - left} of {len(planned)} jobs are finished; the same command goes on")
    if work.stopped_by is not None:
        return 128 + work.stopped_by
    return 1 if work.failed else 0


def _device(name: str, dry_run: bool) -> str:
    """The device asked for; a listing does without it."""
    try:
        return str(choose_device(name))
    except UsageError:
        if not dry_run:
            raise
        return "auto"


def settings(overrides: Sequence[str]) -> DictConfig:
    """configs/gpu.yaml with `key=value` overrides. Raises UsageError."""
    config = OmegaConf.load(_cli.CONFIGS / "gpu.yaml")
    assert isinstance(config, DictConfig)
    OmegaConf.set_struct(config, True)
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or key not in config:
            raise UsageError(
                f"{override!r} is no setting; give key=value with one of {', '.join(config)}"
            )
        config.merge_with_dotlist([override])
    check_settings(config, rules_of("gpu"), others=True)
    return config


def listing(planned: Sequence[Job], config: DictConfig) -> str:
    """What would run, and how long it should take."""
    lines, alone, training = [], 0.0, 0.0
    for job in planned:
        if job.finished():
            lines.append(f"finished          {job.name}")
            continue
        lacking, seconds = job.lacking(), job.seconds_left()
        if lacking is not None:
            lines.append(f"skipped           {job.name}: {lacking} is not installed")
        elif job.folder is None:
            alone += seconds
            lines.append(f"to do {seconds:7.0f} s (guess) {job.name}")
        else:
            training += seconds
            done = f"{job.iterations_done()}/{job.iterations}"
            how = "guess" if job.guessed else "measured"
            lines.append(f"to do {seconds:7.0f} s ({how}) {job.name}, {done} iterations")
    lines.append(
        f"measured alone: {alone / 3600:.1f} h; training runs one after the other: "
        f"{training / 3600:.1f} h; this call: {config.time_limit:g} s, "
        f"{config.workers} side by side"
    )
    return "\n".join(lines)


class Work:
    """Runs jobs until the time is up: what is measured alone, training runs side by side."""

    def __init__(self, config: DictConfig, started: float) -> None:
        self.config = config
        self.deadline = started + config.time_limit
        self.running: dict[subprocess.Popen[bytes], Job] = {}
        self.failed: list[Job] = []
        self.stopped_by: int | None = None

    def all(self, planned: Sequence[Job]) -> None:
        """Every job that is not finished."""
        missing = [job for job in planned if not job.finished()]
        for job in missing:
            if job.folder is None:
                self._alone(job)
        waiting = deque(job for job in missing if job.folder is not None)
        while waiting or self.running:
            while waiting and len(self.running) < self.config.workers and self._may_start():
                self._start(waiting.popleft())
            if not self.running:
                return
            self._collect(waiting)
            time.sleep(0.1)

    def stop(self) -> None:
        """End what still runs; it resumes from its last checkpoint."""
        for process in self.running:
            process.terminate()
        for process in self.running:
            process.wait()
        self.running.clear()

    def _left(self) -> float:
        return self.deadline - time.time()

    def _may_start(self) -> bool:
        return self._left() - self.config.margin >= LEAST_SLICE

    def _alone(self, job: Job) -> None:
        """Run a job and keep what it prints, whole or not at all, by how it ended."""
        assert job.output is not None
        limit = self._left() - self.config.margin
        lacking = job.lacking()
        if lacking is not None:
            reason = f"{job.name}: skipped, {lacking} is not installed"
            print(reason, flush=True)
            _record(job.output, "skipped", f"{reason}\n".encode())
            return
        if limit < max(LEAST_SLICE, job.seconds):
            print(f"{job.name}: left for another call, takes about {job.seconds:.0f} s", flush=True)
            return
        print(f"{job.name} ...", flush=True)
        try:
            done = subprocess.run(
                _command(job),
                cwd=REPOSITORY if job.command[0] == "-m" else None,
                env=_environment(self.config),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=limit,
            )
        except subprocess.TimeoutExpired:
            print(f"{job.name}: not finished in time", flush=True)
            return
        failed = done.returncode != 0
        file = _record(job.output, "failed" if failed else "", done.stdout)
        print(f"{job.name}: {'failed' if failed else 'done'}, see {file}", flush=True)
        if failed:
            self.failed.append(job)

    def _start(self, job: Job) -> None:
        limit = min(self.config.slice, self._left() - self.config.margin)
        command = [*_command(job), f"training.time_limit={limit:.1f}"]
        self.running[subprocess.Popen(command, env=_environment(self.config))] = job

    def _collect(self, waiting: deque[Job]) -> None:
        """Take in what has ended; a run that only used up its time waits for its next turn."""
        for process, job in list(self.running.items()):
            if process.poll() is None:
                if self._left() < 0:
                    process.terminate()
                continue
            del self.running[process]
            if process.returncode != 0 and self._left() > 0:
                print(f"{job.name}: failed with status {process.returncode}", flush=True)
                self.failed.append(job)
            elif not job.finished():
                waiting.append(job)


def _command(job: Job) -> list[str]:
    first, *rest = job.command
    return [sys.executable, str(REPOSITORY / first) if first.endswith(".py") else first, *rest]


def _record(output: Path, word: str, text: bytes) -> Path:
    """Write `output`, or for a word its sibling `<name>.<word>.txt`, in place of all others."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"cannot make {output.parent} ({error.strerror}); choose results_root="
        ) from error
    siblings = {word: output.with_suffix(f".{word}.txt") for word in ("failed", "skipped")}
    file = siblings.get(word, output)
    write_atomic(file, text)
    for sibling in siblings.values():
        if sibling != file:
            sibling.unlink(missing_ok=True)
    return file


def _environment(config: DictConfig) -> dict[str, str]:
    """One thread for each program, this source tree, scripts where they are, and the data."""
    before = os.environ.get("PYTHONPATH")
    path = str(REPOSITORY) if not before else os.pathsep.join([str(REPOSITORY), before])
    data = {} if config.data_root is None else {"RAD_DATA": str(config.data_root)}
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **data}


def archive(file: str, folders: Sequence[str], since: float) -> int:
    """Pack the files of the folders that changed since then, as they lie; how many there are.

    A finished run needs its checkpoint no more.
    """
    new = [
        path
        for folder in map(Path, folders)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock" and path.stat().st_mtime >= since
        if not path.match("checkpoint*.pt") or not (path.parent / "summary.json").exists()
    ]
    Path(file).resolve().parent.mkdir(parents=True, exist_ok=True)
    packed = Path(f"{file}.tmp")
    packed.unlink(missing_ok=True)
    with packed.open("xb") as stream, tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for path in new:
            tar.add(path)
    packed.replace(file)
    return len(new)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("settings", nargs="*", metavar="key=value", help="see configs/gpu.yaml")
    parser.add_argument("--dry-run", action="store_true", help="list what would run")
    parser.add_argument("--archive", metavar="PATH", help="pack what is new into this tar.gz file")
    return parser


if __name__ == "__main__":
    _cli.end(main)
