"""The paper's hand calculation of peak memory (Table 1), in both readings.

*printed* gives the paper's cells: 17 of the 18 to the last digit, and 2.20 where it has
2.21 (feedforward, keep 0.5: 2.2045). *honest* counts what an implementation needs: ReLU
masks before pooling rather than after, the input weights that the recurrent network
really has, log-probabilities and labels of the loss, whole numbers kept, and at keep 1
(exact layers) no mask where the kept activation already tells it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rad.errors import UsageError

FLOAT, LABEL = 4, 8
KEEP_FRACTIONS = (1.0, 0.8, 0.5, 0.3, 0.1, 0.05)

PRINTED_MB = {
    "convnet": dict(zip(KEEP_FRACTIONS, (23.08, 19.19, 12.37, 7.82, 3.28, 2.14), strict=True)),
    "feedforward": dict(zip(KEEP_FRACTIONS, (2.69, 2.51, 2.21, 2.00, 1.80, 1.75), strict=True)),
    "irnn": dict(zip(KEEP_FRACTIONS, (47.93, 39.98, 25.85, 16.43, 7.01, 4.66), strict=True)),
}
"""Table 1 as the paper prints it, in 1e6 bytes."""


@dataclass(frozen=True)
class Network:
    """The counts behind Table 1, for one example where they grow with the batch.

    `inputs` are (rows, d): what weight layers read, d the axis that is sketched.
    `always` are numbers kept exactly at every keep fraction.
    """

    parameters: int
    printed_parameters: int
    inputs: tuple[tuple[int, int], ...]
    always: int
    mask_bits: int
    printed_mask_bits: int
    exact_mask_bits: int
    outputs: int = 10


NETWORKS = {
    "feedforward": Network(
        parameters=419_110,
        printed_parameters=419_110,
        inputs=((1, 784), (1, 300), (1, 300), (1, 300)),
        always=0,
        mask_bits=900,
        printed_mask_bits=900,
        exact_mask_bits=0,
    ),
    "convnet": Network(
        parameters=85_802,
        printed_parameters=85_802,
        inputs=((3, 1024), (16, 1024), (32, 256), (32, 256), (1, 2048)),
        always=0,
        mask_bits=16 * 1024 + 32 * 1024 + 32 * 256 + 32 * 256,
        printed_mask_bits=16 * 1024 + 32 * 256 + 32 * 256 + 32 * 64,
        exact_mask_bits=32 * 1024 + 32 * 256,
    ),
    "irnn": Network(
        parameters=100 + 100 * 100 + 2 * 100 + 100 * 10 + 10,
        printed_parameters=785 * 100 + 100 * 101 + 101 * 10,
        inputs=((785, 100),),
        always=784,
        mask_bits=784 * 100,
        printed_mask_bits=784 * 100,
        exact_mask_bits=0,
    ),
}


def paper_bytes(
    network: str,
    keep_fraction: float | None = None,
    batch_size: int = 150,
    reading: Literal["printed", "honest"] = "printed",
) -> int:
    """Bytes of parameters and of what the backward pass needs, by hand.

    `keep_fraction` None or 1 means exact layers, as the paper's column 1.0. Raises
    UsageError for a network that is not in Table 1.
    """
    if network not in NETWORKS:
        raise UsageError(f"no Table 1 entry for {network!r}: choose one of {', '.join(NETWORKS)}")
    net = NETWORKS[network]
    exact = keep_fraction is None or keep_fraction == 1
    honest = reading == "honest"
    fraction = 1.0 if exact else float(keep_fraction or 1)
    kept: float
    if honest:
        kept = sum(rows * (d if exact else int(d * fraction + 0.999)) for rows, d in net.inputs)
        bits = net.exact_mask_bits if exact else net.mask_bits
        loss = net.outputs * FLOAT + LABEL
    else:
        kept = fraction * sum(rows * d for rows, d in net.inputs)
        bits = 0 if exact else net.printed_mask_bits
        loss = net.outputs * FLOAT
    parameters = net.parameters if honest else net.printed_parameters
    example = FLOAT * (kept + net.always) + bits / 8 + loss
    return round(parameters * FLOAT + batch_size * example)
