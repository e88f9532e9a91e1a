"""Images read pixel by pixel: the sequences of the paper's recurrent experiment (section 4).

A sequence is an image's rows one after another, one pixel a step. `downsample` n first averages
blocks of n x n pixels, which divides the number of steps by n^2. `permuted` reads the pixels in
one fixed random order, which makes the task harder.
"""

import torch
from torch import Tensor

from rad.draws.reference import make_key, words
from rad.errors import UsageError

DOWNSAMPLE = (1, 2, 4)
WHITE = 255
PERMUTATION_SEED = 0


def pixel_sequences(
    images: Tensor, downsample: int = 1, permuted: bool = False
) -> tuple[Tensor, int]:
    """The sequences of uint8 `images`, and the value in them that stands for a white pixel.

    Nothing is rounded: a block is kept as the sum of its pixels, in uint8 at `downsample` 1 and in
    int16 (at most 16 * 255) above. Dividing by the second value gives the average, in [0, 1].
    Shapes: (N, 1, H, W) -> (N, T, 1), T = H W / downsample^2.

    Raises:
        UsageError: what `check_options` refuses.
    """
    check_options(downsample, permuted)
    area = downsample**2
    if area > 1:
        height, width = (size // downsample for size in images.shape[2:])
        blocks = images.view(len(images), height, downsample, width, downsample)
        images = blocks.sum((2, 4), dtype=torch.int16)
    sequences = images.flatten(1)
    if permuted:
        sequences = sequences[:, permutation(sequences.shape[1]).to(images.device)]
    return sequences.unsqueeze(2), WHITE * area


def permutation(steps: int) -> Tensor:
    """The order in which a permuted sequence is read, the same on every machine: int64, (steps,).

    It sorts the words (`rad.draws.reference`, as signed integers) of row 0 of seed 0's key.
    """
    return words(make_key(PERMUTATION_SEED), range(1), steps)[0].argsort(stable=True)


def check_options(downsample: object = 1, permuted: object = False) -> None:
    """Refuse what `pixel_sequences` cannot do.

    Raises:
        UsageError: a factor other than 1, 2 and 4, or a `permuted` that is neither true nor false.
    """
    if isinstance(downsample, bool) or downsample not in DOWNSAMPLE:
        choices = ", ".join(map(str, DOWNSAMPLE))
        raise UsageError(f"downsample is {downsample!r}; choose one of {choices}")
    if not isinstance(permuted, bool):
        raise UsageError(f"permuted is {permuted!r}; set it to true or false")
