import pytest
import torch
import torch.nn.functional as F
from torch import nn
from unbiased import check_biased_is_caught, check_unbiased

import rad
from rad import data, models
from rad.errors import UsageError
from rad.memory import peak_bytes, saved_bytes
from rad.training import NextToken


def test_feedforward_is_the_papers_network() -> None:
    model = models.build("feedforward", (1, 28, 28), 10, seed=0)
    assert sum(p.numel() for p in model.parameters()) == 419_110
    layers = list(model.children())
    linears = [layer for layer in layers if isinstance(layer, nn.Linear)]
    assert [layer.out_features for layer in linears] == [300, 300, 300, 10]
    assert sum(isinstance(layer, nn.ReLU) for layer in layers) == 3
    assert not isinstance(layers[-1], nn.ReLU)
    assert model(torch.randn(5, 1, 28, 28)).shape == (5, 10)


def test_weights_depend_on_the_seed_only() -> None:
    first = models.build("feedforward", (1, 8, 8), 10, seed=3).state_dict()
    torch.rand(7)
    again = models.build("feedforward", (1, 8, 8), 10, seed=3).state_dict()
    other = models.build("feedforward", (1, 8, 8), 10, seed=4).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["1.weight"], other["1.weight"])


def test_building_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    models.build("feedforward", (1, 8, 8), 10, seed=3)
    assert torch.equal(before, torch.get_rng_state())


def test_initial_weights_are_torchs_default() -> None:
    model = models.build("feedforward", (6,), 3, seed=9, hidden=(5,))
    with torch.random.fork_rng():
        torch.manual_seed(9)
        expected = [nn.Linear(6, 5), nn.Linear(5, 3)]
    given = [layer for layer in model.children() if isinstance(layer, nn.Linear)]
    for layer, reference in zip(given, expected, strict=True):
        assert torch.equal(layer.weight, reference.weight)
        assert torch.equal(layer.bias, reference.bias)


def test_no_hidden_layer() -> None:
    assert models.build("feedforward", (6,), 3, seed=0, hidden=())(torch.ones(2, 6)).shape == (2, 3)


@pytest.mark.parametrize("width", [0, -3, 2.5, True, "wide"])
def test_bad_width(width: object) -> None:
    with pytest.raises(UsageError, match=r"hidden has .*: give whole numbers"):
        models.build("feedforward", (6,), 3, seed=0, hidden=(4, width))


def test_unknown_model_names_the_choices() -> None:
    with pytest.raises(UsageError, match=r"'vgg'.*feedforward"):
        models.build("vgg", (6,), 3, seed=0)


def test_a_model_takes_what_its_data_say() -> None:
    text = data.characters("abc", "abcabcabcabc" * 5)
    assert text.model_arguments == {"vocabulary": 3}
    with pytest.raises(UsageError, match=r"'feedforward' takes input_shape, classes.*such data"):
        models.build("feedforward", **text.model_arguments, seed=0)
    with pytest.raises(UsageError, match=r"'channels'.*options that it has"):
        models.build("feedforward", (6,), 3, seed=0, channels=(2,))


def test_a_model_for_a_text_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def bigrams(vocabulary: int, width: int = 4) -> nn.Module:
        return nn.Sequential(nn.Embedding(vocabulary, width), nn.Linear(width, vocabulary))

    monkeypatch.setitem(models.MODELS, "bigrams", bigrams)
    text = data.characters("abc", "abcabcabcabc" * 5)
    task = NextToken(text, 4)
    model = models.build("bigrams", **text.model_arguments, seed=0, width=5)
    (tokens,), following = task.first(2)
    assert task.loss(model(tokens), following).isfinite()


def test_convnet_is_the_papers_network() -> None:
    model = models.build("convnet", (3, 32, 32), 10, seed=0)
    assert sum(p.numel() for p in model.parameters()) == 85_802
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_a_deeper_convnet_pools_as_often() -> None:
    model = models.build("convnet", (3, 8, 8), 10, seed=0, channels=(4,) * 8, pool_every=4)
    layers = list(model.children())
    assert [i for i, layer in enumerate(layers) if isinstance(layer, nn.AvgPool2d)] == [8, 17]
    assert model(torch.randn(2, 3, 8, 8)).shape == (2, 10)
    with pytest.raises(UsageError, match="pool_every is 0"):
        models.build("convnet", (3, 8, 8), 10, seed=0, pool_every=0)


def test_irnn_starts_as_the_paper_says() -> None:
    model = models.build("irnn", (1, 28, 28), 10, seed=0)
    weights = dict(model.named_parameters())
    assert torch.equal(weights["rnn.weight_hh_l0"], torch.eye(100))
    assert not any(weights[name].any() for name in weights if "bias" in name)
    assert 0.0008 < weights["output.weight"].std() < 0.0012
    x = torch.rand(2, 1, 28, 28)
    state = torch.zeros(2, 100)
    for pixel in x.flatten(1).unbind(1):
        state = torch.relu(pixel[:, None] * weights["rnn.weight_ih_l0"][:, 0] + state)
    torch.testing.assert_close(model(x), state @ weights["output.weight"].t())


@pytest.mark.parametrize("hidden", [0, 2.5, True, "wide"])
def test_bad_width_of_the_irnn(hidden: object) -> None:
    with pytest.raises(UsageError, match=r"hidden is .*: give a whole number"):
        models.build("irnn", (49, 1), 10, seed=0, hidden=hidden)


def test_the_exact_irnn_equals_its_torch_peer() -> None:
    """Same initial weights, same loss and gradients, on the layers that sketch."""
    peer = models.build("irnn", (49, 1), 10, seed=0)
    exact = rad.convert(peer, rad.Identity())
    assert type(peer.rnn) is nn.RNN
    assert type(exact.rnn) is rad.nn.RNN
    torch.manual_seed(0)
    x, y = torch.randn(30, 49, 1), torch.randint(10, (30,))
    losses = [F.cross_entropy(model(x), y) for model in (peer, exact)]
    torch.testing.assert_close(losses[1], losses[0])
    for loss in losses:
        loss.backward()
    for ours, theirs in zip(exact.parameters(), peer.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_saved_and_peak_bytes_of_the_irnn_at_784_steps() -> None:
    """Keep 0.1, batch 150: sketches of 785 states, the output layer's among them; pixels; bits."""
    model = models.build("irnn", (784, 1), 10, seed=0)
    x, y = torch.randn(150, 784, 1), torch.randint(10, (150,))

    def bytes_of(sketch: rad.Sketch) -> tuple[int, int]:
        converted = rad.convert(model, sketch)

        def loss() -> torch.Tensor:
            return F.cross_entropy(converted(x), y)

        saved = saved_bytes(loss)
        return saved, peak_bytes(lambda: loss().backward())

    saved, peak = bytes_of(rad.DifferentSample(0.1))
    kept, pixels, bits, output = 785 * 150 * 10 * 4, 784 * 150 * 4, 784 * 150 * 100 / 8, 150 * 48
    assert [round(part / 1e6, 2) for part in (kept, pixels, bits)] == [4.71, 0.47, 1.47]
    assert saved == pytest.approx(kept + pixels + bits + output, rel=0.01)
    _, exact_peak = bytes_of(rad.Identity())
    assert 5 * peak < exact_peak


def test_all_gradients_of_a_20_step_irnn_are_unbiased() -> None:
    peer = models.build("irnn", (20, 1), 5, seed=0, hidden=6, std=0.3).double()
    torch.manual_seed(0)
    x, y = torch.randn(16, 20, 1, dtype=torch.float64), torch.randint(5, (16,))

    def gradient(model: nn.Module) -> torch.Tensor:
        grads = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
        return torch.cat([grad.flatten() for grad in grads])

    converted = rad.convert(peer, rad.DifferentSample(0.5))
    samples = torch.stack([gradient(converted) for _ in range(600)])
    check_unbiased(samples, gradient(peer))
    check_biased_is_caught(samples, gradient(peer))


@pytest.mark.parametrize(
    ("shape", "channels", "words"),
    [
        ((49, 1), (4,), "takes images"),
        ((1, 8, 8), (0, 2), "channels has 0"),
        ((1, 8, 8), (2.0,), "channels has 2.0"),
        ((1, 8, 8), (2,) * 8, "pool images .* away"),
    ],
)
def test_a_convnet_refuses_what_it_cannot_read(
    shape: tuple[int, ...], channels: tuple[int, ...], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        models.build("convnet", shape, 10, seed=0, channels=channels)
