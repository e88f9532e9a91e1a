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


def test_layers_of_other_shapes() -> None:
    expected = {
        "feedforward_deep": ([64] * 63 + [10], 128),
        "feedforward_1024": ([1024] * 3 + [10], 1024),
        "feedforward_tokens": ([1024, 256, 1024, 256, 10], 4096),
        "convnet_pointwise": ([64] * 4, 150),
    }
    with torch.device("meta"):
        for name, (widths, examples) in expected.items():
            network = NETWORKS[name]
            model = network.build()
            kind, width = (
                (nn.Conv2d, "out_channels") if "conv" in name else (nn.Linear, "out_features")
            )
            layers = [layer for layer in model.modules() if isinstance(layer, kind)]
            assert [getattr(layer, width) for layer in layers] == widths
            assert network.examples == examples
            assert model(torch.empty(2, *network.shape)).shape == (2, 10)
            assert {layer.kernel_size for layer in layers if isinstance(layer, nn.Conv2d)} <= {
                (1, 1)
            }
