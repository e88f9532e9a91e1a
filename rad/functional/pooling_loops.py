"""Average pooling of windows of 2 x 2, side by side, in loops compiled by numba.

The sums of torch's kernel in their order, so that results are the same to the bit; its own loops
take several times as long.
"""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(nogil=True, cache=True, error_model="numpy")
def average(images: np.ndarray, means: np.ndarray) -> None:
    """Means of the windows of images (count, H, W), into means (count, H // 2, W // 2)."""
    quarter = images.dtype.type(0.25)
    for image in range(means.shape[0]):
        for row in range(means.shape[1]):
            above, below = images[image, 2 * row], images[image, 2 * row + 1]
            mean = means[image, row]
            for j in range(len(mean)):
                total = above[2 * j] + above[2 * j + 1] + below[2 * j] + below[2 * j + 1]
                mean[j] = total * quarter


@njit(nogil=True, cache=True, error_model="numpy")
def spread(means: np.ndarray, images: np.ndarray) -> None:
    """A quarter of each of means (count, H // 2, W // 2) to its window in images (count, H, W)."""
    quarter = means.dtype.type(0.25)
    for image in range(means.shape[0]):
        for row in range(means.shape[1]):
            above, below = images[image, 2 * row], images[image, 2 * row + 1]
            mean = means[image, row]
            for j in range(len(mean)):
                share = mean[j] * quarter
                above[2 * j] = share
                above[2 * j + 1] = share
            below[: 2 * len(mean)] = above[: 2 * len(mean)]
            above[2 * len(mean) :] = 0
            below[2 * len(mean) :] = 0
        images[image, 2 * means.shape[1] :] = 0
