"""The networks that are benchmarked."""

import torch
from torch import nn

from rad.benchmarks.networks import NETWORKS


def test_wide_networks_are_eight_times_as_wide_and_as_deep() -> None:
    widths = {"feedforward": (nn.Linear, "out_features"), "convnet": (nn.Conv2d, "out_channels")}
    with torch.device("meta"):
        for name, (kind, width) in widths.items():
            models = [NETWORKS[n].build() for n in (name, f"{name}_wide")]
            narrow, wide = (
                [getattr(layer, width) for layer in model.modules() if isinstance(layer, kind)]
                for model in models
            )
            scores = narrow.pop(), wide.pop() if name == "feedforward" else None
            assert scores[1] in (10, None)
            narrow += [] if name == "feedforward" else [scores[0]]
            assert wide == [8 * each for each in narrow for _ in range(8)]
            pools = [sum(isinstance(m, nn.AvgPool2d) for m in model.modules()) for model in models]
            assert pools[0] == pools[1]
            x = torch.empty(2, *NETWORKS[name].shape)
            assert models[1](x).shape == (2, 10)
