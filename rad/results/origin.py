"""Where a result comes from: command, commit, versions and device, without machine paths."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rad.results.files import digest

if TYPE_CHECKING:
    import torch

PACKAGES = (
    *("torch", "torchvision", "triton", "numpy", "numba", "pandas", "scikit-learn"),
    *("hydra-core", "optuna"),
)

ENVIRONMENT = ("MALLOC_MMAP_THRESHOLD_",)
"""Variables that are part of a command where they are set: they change the memory it takes."""

REPOSITORY = Path(__file__).resolve().parents[2]

NUMBERLESS = (
    *("results", "plotting", "tuning", "graph", "benchmarks", "gradient_noise", "pages"),
    *("processes", "schema", "torture", "__pycache__"),
)
"""Folders of `rad` whose code no training run's numbers depend on."""


def on_device(summary: Mapping[str, Any]) -> list[str]:
    """Device and threads of what `machine` has noted, in words; none where it has noted nothing."""
    if "threads" not in summary:
        return []
    many = "1 thread" if summary["threads"] == 1 else f"{summary['threads']} threads"
    return [str(summary["device"]), many]


def provenance() -> dict[str, Any]:
    """Versions, commit and command of this process, without machine paths.

    The commit is git's, with `-dirty` where tracked files are changed; outside of a checkout it
    is $RAD_COMMIT, or `unknown`.
    """
    versions = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    commit = _git_commit() or os.environ.get("RAD_COMMIT") or "unknown"
    return {"versions": versions, "commit": commit, "command": _command(sys.argv)}


def machine(device: torch.device) -> dict[str, Any]:
    """The model of the device; of a processor also what rounding depends on; torch's threads.

    One model name can stand for processors of two kinds: `instructions` are those that torch uses.
    """
    import torch

    known = {"device": name_of(device), "threads": torch.get_num_threads()}
    if device.type == "cuda":
        return known
    entries = _processor()
    numbers = [f"{key} {entries[key]}" for key in ("cpu family", "model") if key in entries]
    instructions = torch.backends.cpu.get_cpu_capability()
    return known | {"processor": ", ".join(numbers), "instructions": instructions}


def name_of(device: torch.device) -> str:
    """The model of the GPU or of the processor."""
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    return _processor().get("model name") or platform.processor() or platform.machine()


def _processor() -> dict[str, str]:
    """What Linux tells of the first processor; nothing elsewhere."""
    try:
        first, _, _ = Path("/proc/cpuinfo").read_text().partition("\n\n")
    except OSError:
        return {}
    entries = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in entries}


@cache
def code() -> str:
    """The digest of all sources in `rad` that a training run's numbers may depend on.

    As they were when this process first asked.
    """
    return _digest_of(REPOSITORY / "rad", ".py", NUMBERLESS)


@cache
def whole_code() -> str:
    """The digest of all that scripts do: of `rad`, `scripts` and `configs`, whole. As `code`."""
    rad, scripts = (_digest_of(REPOSITORY / name, ".py") for name in ("rad", "scripts"))
    return digest(f"{rad} {scripts} {_digest_of(REPOSITORY / 'configs', '.yaml')}".encode())


def _digest_of(root: Path, suffix: str, without: Collection[str] = ()) -> str:
    """Of the files below a folder that end so, `without` what lies in folders of those names."""
    found = hashlib.sha256()
    for folder, below, files in os.walk(root):
        below[:] = sorted(name for name in below if name not in without)
        for name in sorted(file for file in files if file.endswith(suffix)):
            with open(os.path.join(folder, name), "rb") as stream:
                found.update(f"{name} ".encode() + stream.read())
    return found.hexdigest()


def _git_commit() -> str | None:
    """None where `rad` does not lie at the top of a git checkout with a commit."""
    if not (REPOSITORY / ".git").exists():
        return None
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(describe, cwd=REPOSITORY, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _command(arguments: Sequence[str]) -> str:
    """`python scripts/<name>.py ...`, after what is set of ENVIRONMENT; torchrun where it was that.

    Absolute paths outside of the checkout become PATH; where the data lies is left out, since
    each machine has its own place for it.
    """
    program = Path(arguments[0]).resolve()
    inside = program.is_relative_to(REPOSITORY)
    shown = program.relative_to(REPOSITORY).as_posix() if inside else program.name
    kept = (each for each in arguments[1:] if not re.match(r"(--)?data[_-]root=", each))
    local = (argument.replace(f"{REPOSITORY}/", "") for argument in kept)
    rest = (re.sub(r"(?<![^=,:\[{'\"\s])~?/[^\s,'\"\]}]*", "PATH", argument) for argument in local)
    given = [f"{name}={os.environ[name]}" for name in ENVIRONMENT if name in os.environ]
    return shlex.join([*given, *_starter(), shown, *rest])


def _starter() -> list[str]:
    """What runs the script."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return ["python"]
    counts = {"--nnodes": "GROUP_WORLD_SIZE", "--nproc-per-node": "LOCAL_WORLD_SIZE"}
    given = {option: os.environ.get(name, "1") for option, name in counts.items()}
    return ["torchrun", *(word for option, n in given.items() if n != "1" for word in (option, n))]
