"""Training examples that take the test set's place."""

from __future__ import annotations

from dataclasses import replace

import torch

from rad.data import Dataset
from rad.draws.reference import distinct_integers
from rad.errors import UsageError
from rad.sketches import fold_in, make_key

# Sub-key of the held-out examples, far from those of layers.
HELD_OUT = 1 << 33


def hold_out(dataset: Dataset, count: int, seed: int) -> Dataset:
    """`dataset` with `count` of its N training examples as test set, and trained on the others.

    The original test set is not in it at all, so that nothing tuned can have seen it. The examples
    are a uniform subset that depends on `seed`, N and `count` only; both parts keep their order.

    Raises:
        UsageError: no example would be left on one side.
    """
    total = len(dataset.train_labels)
    if not isinstance(count, int) or isinstance(count, bool) or not 0 < count < total:
        raise UsageError(
            f"cannot hold out {count!r} of {total:,} training examples; "
            f"give a whole number from 1 to {total - 1:,}"
        )
    device = dataset.train_images.device
    key = fold_in(make_key(seed, device), HELD_OUT)
    held = torch.zeros(total, dtype=torch.bool, device=device)
    held[distinct_integers(key, range(1), count, total)[0]] = True
    return replace(
        dataset,
        train_images=dataset.train_images[~held],
        train_labels=dataset.train_labels[~held],
        test_images=dataset.train_images[held],
        test_labels=dataset.train_labels[held],
    )
