"""Updates whose batch is worked through in parts."""

from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pytest
import torch
from training.test_next_token import SETTINGS as TEXT_SETTINGS
from training.test_next_token import network as text_network
from training.test_next_token import run
from training.test_resume import assert_same_end
from training.test_training_loop import Recorder, Watched, go, network, settings

from rad.data import load
from rad.errors import UsageError
from rad.sketches import Identity
from rad.training.ranks import Ranks


@pytest.mark.parametrize(
    ("batch", "part", "sizes"), [(7, 3, [3, 2, 2]), (8, 7, [4, 4]), (4, 9, [4])]
)
def test_parts_are_the_same_batches_in_few_and_even_pieces(
    batch: int, part: int, sizes: list[int], tmp_path: Path
) -> None:
    drawn = {}
    for name, options in (("whole", {}), ("parts", {"micro_batch": part})):
        dataset = Watched(load("digits"))
        go(tmp_path / name, settings(batch_size=batch, **options), dataset=dataset)
        drawn[name] = vars(dataset)["drawn"]
    assert [len(indices) for indices in drawn["parts"]] == sizes * 6
    pieces, count = iter(drawn["parts"]), len(sizes)
    together = [list(chain(*islice(pieces, count))) for _ in range(6)]
    assert together == drawn["whole"]


def test_they_train_as_the_whole_batch_does_to_rounding(tmp_path: Path) -> None:
    rows: dict[str, list[dict[str, Any]]] = {}
    for name, options in (("whole", {}), ("parts", {"micro_batch": 2})):
        logger = Recorder()
        go(tmp_path / name, settings(learning_rate=0.5, **options), logger=logger)
        rows[name] = logger.rows
    assert len(rows["parts"]) == len(rows["whole"]) == 3
    for found, expected in zip(rows["parts"], rows["whole"], strict=True):
        for name in ("train_loss", "test_loss"):
            assert found[name] == pytest.approx(expected[name], rel=1e-5), name
    for found, expected in zip(rows["parts"][1:], rows["whole"][1:], strict=True):
        assert found["batch_loss"] == pytest.approx(expected["batch_loss"], rel=1e-5)
    assert rows["whole"][2]["train_loss"] < 0.99 * rows["whole"][0]["train_loss"]


def test_a_run_in_parts_resumes_as_if_unbroken(tmp_path: Path) -> None:
    chosen = replace(TEXT_SETTINGS, micro_batch=3)
    whole = run(tmp_path / "unbroken", text_network("perceptron", Identity()), chosen)
    limited, results = replace(chosen, time_limit=1e-6), []
    while not results or not results[-1].finished:
        results.append(run(tmp_path / "broken", text_network("perceptron", Identity()), limited))
    assert len(results) > 1
    assert results[-1].final == whole.final
    assert_same_end(tmp_path / "broken", tmp_path / "unbroken")


def test_a_backward_pass_is_told_of_once_an_update(tmp_path: Path) -> None:
    seen: list[int] = []
    go(tmp_path, settings(micro_batch=2), model=network(), on_backward=seen.append)
    assert seen == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("part", [0, 1.5, True])
def test_a_part_is_a_whole_number(part: Any) -> None:
    with pytest.raises(UsageError, match="micro_batch is"):
        settings(micro_batch=part)


def test_no_part_is_alive_while_the_next_one_runs(tmp_path: Path) -> None:
    dataset = Watched(load("digits"))
    model = network().requires_grad_(True)
    alive: list[int] = []

    def count(*_: object) -> None:
        if torch.is_grad_enabled():
            alive.append(sum(each() is not None for each in vars(dataset)["memory"]))

    model[0].register_forward_hook(count)
    go(tmp_path, settings(micro_batch=2), model=model, dataset=dataset)
    assert alive == [1] * (4 * 6)


def test_several_processes_take_no_parts() -> None:
    Ranks(0, 2).check_whole(1)
    Ranks(0, 1).check_whole(3)
    with pytest.raises(UsageError, match="among 2 processes, and not in 3 parts"):
        Ranks(0, 2).check_whole(3)
