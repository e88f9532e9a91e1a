"""Noise on the path adds up with depth, no faster: it does not multiply."""

from rad.gradient_noise.depth import depth_rows

SETTINGS = {"width": 16, "batch_size": 32, "draws": 20, "seed": 0}


def test_the_relative_variance_at_four_times_the_depth_is_at_most_four_times() -> None:
    (shallow, fine), (deep, _) = (depth_rows(depth, [2, 4], **SETTINGS) for depth in (4, 16))
    margin = 5 * (deep["standard_error"] + 4 * shallow["standard_error"])
    assert deep["relative_variance"] + margin < 4 * shallow["relative_variance"]
    assert deep["relative_variance"] > shallow["relative_variance"] > 0
    steps = shallow["relative_variance"] / fine["relative_variance"]
    assert 20 < steps < 32  # grids of 2 and of 4 bits have 3 and 15 steps
    ratio = deep["last_block"] / shallow["last_block"]
    assert 0.5 < ratio < 2  # of which nothing lies behind
