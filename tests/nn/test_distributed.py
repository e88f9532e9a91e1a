"""Processes that train one model together draw for themselves."""

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pytest
from torch import distributed

HERE = Path(__file__).resolve().parent

pytestmark = pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()), reason="needs gloo"
)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the checks print on rank 0."""
    meeting = str(tmp_path_factory.mktemp("meeting") / "file")
    paths = [str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(HERE / "distributed_checks.py"), str(rank), meeting],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [rank.communicate(timeout=300) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], outputs
    return json.loads(outputs[0][0].splitlines()[-1])


@pytest.mark.parametrize("case", ["before", "inplace"])
def test_averaged_gradients_have_independent_errors(results: Any, case: str) -> None:
    """Half the variance of one process; shared draws, which have the whole, would fail."""
    case = results[case]
    assert case["as the keys say"]
    allowed = NormalDist().inv_cdf(1 - 1e-7 / 2) * case["standard error"]
    half = case["variance alone"] / 2
    assert abs(case["mean square"] - half) <= allowed
    assert allowed < half / 2


def test_processes_have_keys_of_their_own_or_of_their_replica(results: Any) -> None:
    assert results["keys"] == 2
    assert results["keys of one replica"] == 1


def test_layers_that_are_sharded_already_convert_in_place(results: Any) -> None:
    assert results["sharded"]


@pytest.mark.parametrize("case", range(4), ids=["DDP", "DDP in place", "FSDP2", "FSDP2 in place"])
def test_gradients_of_served_modules_are_the_mean_of_the_ranks(results: Any, case: int) -> None:
    assert results["served"][case] == {"served": True, "mean": True, "own draws": True}
