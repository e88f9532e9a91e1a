import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from cases import SKETCHES
from torch import Tensor, nn
from unbiased import check_biased_is_caught, check_unbiased

import rad
from rad import models
from rad.conversion.report import UNTRACED
from rad.errors import UsageError
from rad.memory import saved_bytes
from rad.sketches import Sketch

every_sketch = pytest.mark.parametrize("sketch", SKETCHES.values(), ids=SKETCHES.keys())


def network(dtype: torch.dtype = torch.float32, inplace: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    hidden = [nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 7, bias=False), nn.ReLU(inplace)]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(7, 3)).to(dtype)


@every_sketch
def test_same_names_forward_and_input_gradient(sketch: Sketch) -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    converted = rad.convert(model, sketch)
    assert list(converted.state_dict()) == list(before)
    x = torch.randn(5, 3, 4, requires_grad=True)
    expected, actual = model(x), converted(x)
    assert torch.equal(actual, expected)
    grad_output = torch.randn_like(expected)
    (want,) = torch.autograd.grad(expected, x, grad_output)
    (got,) = torch.autograd.grad(actual, x, grad_output)
    assert torch.equal(got, want)
    assert all(map(torch.equal, model.state_dict().values(), before.values()))
    converted.load_state_dict(before)


@pytest.mark.parametrize("frozen", ["eval", "no_grad"])
def test_nothing_is_sketched_in_evaluation(frozen: str) -> None:
    model = network()
    converted = rad.convert(model, rad.DifferentSample(0.3))
    calls = converted[1].calls
    if frozen == "eval":
        converted.eval()
        x = torch.randn(5, 12)
        exact = torch.autograd.grad(model(x).square().sum(), model[1].weight)
        assert torch.equal(
            torch.autograd.grad(converted(x).square().sum(), converted[1].weight)[0], exact[0]
        )
    else:
        with torch.no_grad():
            converted(torch.randn(5, 12))
    assert calls == 0


def weight_gradients(model: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
    weights = [p for name, p in model.named_parameters() if name.endswith("weight")]
    return list(torch.autograd.grad(F.cross_entropy(model(x), y), weights))


@every_sketch
def test_weight_gradients_are_the_naive_ones_for_the_keys_of_the_call(sketch: Sketch) -> None:
    model = network(torch.float64, inplace=False)
    x, y = torch.randn(4, 12, dtype=torch.float64), torch.tensor([0, 2, 1, 1])
    seen: list[tuple[Tensor, Tensor]] = []

    def watch(layer: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        inputs = args[0].detach()
        output.register_hook(lambda grad_output: seen.insert(0, (inputs, grad_output)))

    for layer in model:
        if isinstance(layer, nn.Linear):
            layer.register_forward_hook(watch)
    weight_gradients(model, x, y)

    converted = rad.convert(network(torch.float64), sketch, seed=3)
    weight_gradients(converted, x, y)
    actual = weight_gradients(converted, x, y)
    sketching = [m for m in converted if isinstance(m, rad.nn.Linear)]
    for (inputs, grad_output), layer, gradient in zip(seen, sketching, actual, strict=True):
        key = rad.sketches.fold_in(layer.key, 1)
        kept = sketch.compress(inputs, key)
        x_hat = sketch.decompress(kept, inputs.shape, inputs.dtype, key)
        torch.testing.assert_close(gradient, grad_output.t() @ x_hat)


@pytest.mark.parametrize(
    ("sketch", "n"),
    [(rad.SameSample(0.5), 6000), (rad.DifferentSample(0.5), 4000), (rad.Project(0.5), 6000)],
    ids=str,
)
def test_weight_gradients_of_a_network_are_unbiased(sketch: Sketch, n: int) -> None:
    model = network(torch.float64)[1:4]
    x, y = torch.randn(6, 12, dtype=torch.float64), torch.tensor([0, 2, 1, 1, 5, 4])
    converted = rad.convert(model, sketch, seed=3)

    def flat(model: nn.Module) -> Tensor:
        return torch.cat([g.flatten() for g in weight_gradients(model, x, y)])

    samples = torch.stack([flat(converted) for _ in range(n)])
    check_unbiased(samples, flat(model))
    check_biased_is_caught(samples, flat(model))


def test_draws_depend_on_seed_layer_and_call() -> None:
    model = nn.Sequential(nn.Linear(50, 50), nn.Linear(50, 50))
    one, same, other = (rad.convert(model, rad.SameSample(0.2), seed=s) for s in (0, 0, 1))
    keys = [int(m.next_key()) for m in (one[0], one[0], one[1], other[0])]
    assert len(set(keys)) == 4
    assert [int(same[0].next_key()) for _ in range(2)] == keys[:2]
    buffers = dict(one.named_buffers())
    assert buffers["0.calls"] == 2
    assert "0.calls" not in one.state_dict()


def test_activation_checkpointing_decodes_what_it_encoded() -> None:
    from torch.utils.checkpoint import checkpoint

    layer = rad.nn.Linear(6, 4, sketch=rad.SameSample(0.5)).double()
    x = torch.randn(5, 6, dtype=torch.float64)
    grad_output = torch.randn(5, 4, dtype=torch.float64)
    checkpoint(layer, x, use_reentrant=False).backward(grad_output)
    assert layer.calls == 2
    key = rad.sketches.fold_in(layer.key, 1)
    x_hat = layer.sketch.decompress(layer.sketch.compress(x, key), x.shape, x.dtype, key)
    torch.testing.assert_close(layer.weight.grad, grad_output.t() @ x_hat)


def test_masks_are_dropped_where_the_kept_output_tells() -> None:
    model = nn.Sequential(
        nn.Linear(4, 4), nn.ReLU(), nn.Flatten(), nn.Linear(4, 4), nn.ReLU(), nn.Tanh()
    )
    lean = rad.convert(model, rad.Identity())
    assert [lean[1].mask, lean[4].mask] == ["output", "packed"]
    assert {m.mask for m in rad.convert(model, rad.Project(0.5)) if hasattr(m, "mask")} == {
        "packed"
    }
    again = rad.convert(rad.convert(model, rad.Project(0.5)), rad.Identity())
    assert [again[1].mask, again[4].mask] == ["output", "packed"]


def test_a_model_that_cannot_be_traced_keeps_masks() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.relu = nn.Linear(4, 4), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(self.relu(x)) if x.sum() > 0 else self.linear(x)

    model = Branching()
    converted = rad.convert(model, rad.Identity())
    assert converted.get_submodule("relu").mask == "packed"
    x = torch.rand(3, 4)
    assert torch.equal(converted(x), model(x))


def test_shared_layers_stay_shared_and_a_single_layer_converts() -> None:
    shared = nn.Linear(4, 4)
    converted = rad.convert(nn.Sequential(shared, nn.ReLU(), shared), rad.SameSample(0.5))
    assert converted[0] is converted[2]
    assert isinstance(rad.convert(nn.Linear(4, 4), rad.SameSample(0.5)), rad.nn.Linear)


def test_hooks_and_mode_survive() -> None:
    model = network().eval()
    seen: list[int] = []
    model[1].register_forward_hook(lambda *_: seen.append(1))
    converted = rad.convert(model, rad.SameSample(0.5))
    assert not converted[1].training
    converted(torch.randn(2, 12))
    assert seen == [1]


def test_hooks_are_called_with_tensors_only() -> None:
    model, seen = nn.Sequential(network(), nn.Sequential(nn.Linear(3, 3), nn.ReLU())), set()

    def before(module: nn.Module, args: tuple[object, ...]) -> None:
        seen.update(map(type, args))

    def after(module: nn.Module, args: tuple[object, ...], output: object) -> None:
        seen.add(type(output))

    everywhere = nn.modules.module.register_module_forward_hook(after)
    try:
        for module in model.modules():
            module.register_forward_pre_hook(before)
            module.register_forward_hook(after)
        assert UNTRACED not in rad.report(rad.convert(model, rad.SameSample(0.5))).note
        rad.convert(model, rad.SameSample(0.5), inplace=True)
    finally:
        everywhere.remove()
    assert not seen
    model(torch.randn(2, 12))
    assert seen == {Tensor}


def test_report_names_what_was_replaced_and_what_was_not() -> None:
    class OwnLinear(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input)

    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.BatchNorm1d(4), OwnLinear(4, 2))
    report = rad.report(rad.convert(model, rad.SameSample(0.5)), full=True)
    lines = str(report).splitlines()
    assert "SameSample(keep_fraction=0.5" in lines[0]
    assert "1 bit per unit" in lines[1]
    assert "BatchNorm1d" in lines[2]
    assert "given path=" in lines[2]
    assert "a subclass of a torch layer with forward of its own" in lines[3]


def test_a_wrong_sketch_is_refused() -> None:
    with pytest.raises(TypeError, match="Sketch"):
        rad.convert(network(), 0.1)  # type: ignore[arg-type]


def test_acceptance_bytes_of_the_feedforward_net() -> None:
    sizes = [784, 300, 300, 300, 10]
    layers = [m for a, b in itertools.pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())]
    model = nn.Sequential(*layers[:-1])
    x, y = torch.randn(150, 784), torch.randint(10, (150,))
    honest = 150 * (79 + 30 + 30 + 30) * 4 + 150 * 900 / 8 + 150 * 10 * 4 + 150 * 8
    for sketch in (rad.SameSample(0.1), rad.DifferentSample(0.1), rad.Project(0.1)):
        converted = rad.convert(model, sketch)
        measured = saved_bytes(lambda: F.cross_entropy(converted(x), y))  # noqa: B023
        assert measured == pytest.approx(honest, rel=0.005)


def test_honest_bytes_of_the_convolutional_net() -> None:
    convolutions = [
        nn.Conv2d(a, b, 5, padding=2) for a, b in ((3, 16), (16, 32), (32, 32), (32, 32))
    ]
    one, two, three, four = (nn.Sequential(c, nn.ReLU()) for c in convolutions)
    pools = nn.AvgPool2d(2), nn.AvgPool2d(2)
    model = nn.Sequential(
        one, two, pools[0], three, four, pools[1], nn.Flatten(), nn.Linear(2048, 10)
    )
    x, y = torch.randn(150, 3, 32, 32), torch.randint(10, (150,))
    kept = (3 + 16) * 103 + (32 + 32) * 26 + 205
    bits = 16 * 1024 + 32 * 1024 + 2 * 32 * 256
    honest = 150 * (4 * kept + bits / 8 + 10 * 4 + 8)
    for sketch in (rad.SameSample(0.1), rad.DifferentSample(0.1), rad.Project(0.1)):
        converted = rad.convert(model, sketch)
        measured = saved_bytes(lambda: F.cross_entropy(converted(x), y))  # noqa: B023
        assert measured == pytest.approx(honest, rel=0.001)


@every_sketch
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("shape", [(12,), (2, 3, 12), (2, 1, 4, 12), (2, 0, 12)], ids=str)
def test_leading_dimensions_and_in_place_relus(
    shape: tuple[int, ...], inplace: bool, sketch: Sketch
) -> None:
    model = network(torch.float64, inplace)[1:]
    converted = rad.convert(model, sketch)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    expected, actual = model(x), converted(x)
    assert torch.equal(actual, expected)
    grad_output = torch.randn_like(expected)
    (want,) = torch.autograd.grad(expected, x, grad_output)
    (got,) = torch.autograd.grad(actual, x, grad_output)
    torch.testing.assert_close(got, want)


def test_what_a_trace_cannot_see_changes_no_value() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.relu, self.calls = nn.Linear(4, 4), nn.ReLU(), 0

        def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
            self.calls += 1
            h = self.a(x)
            y = self.relu(h)
            return y + (h if skip is None or self.training else skip)

    model = Net().eval()
    converted = rad.convert(model, rad.SameSample(0.5))
    assert converted.calls == 0
    x = torch.randn(3, 4)
    for mode in (True, False):
        assert torch.equal(converted.train(mode)(x), model.train(mode)(x))


def test_hooks_of_all_kinds_see_what_they_see_in_torch() -> None:
    seen: list[Tensor] = []
    converted = rad.convert(network(), rad.SameSample(0.5))
    converted[1].register_forward_hook(lambda m, args, output: seen.append(output))
    converted[1].register_full_backward_hook(lambda m, grad_input, grad_output: None)
    converted(torch.randn(5, 12)).sum().backward()
    assert seen[0].min() < 0


def test_references_outside_of_the_module_tree_follow() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(100, 4)
            self.layers = [self.layer]

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.layers[0](x)
            return out

    converted = rad.convert(Net(), rad.SameSample(0.1))
    x = torch.randn(50, 100)
    assert saved_bytes(lambda: converted(x)) == 50 * 10 * 4 + 8


def test_dropout_under_activation_checkpointing_keeps_its_mask() -> None:
    from torch.utils.checkpoint import checkpoint

    model = rad.convert(nn.Sequential(nn.Dropout(0.5), nn.Identity()), rad.Identity())
    x = torch.ones(4000, requires_grad=True)
    output = checkpoint(model, x, use_reentrant=False)
    output.sum().backward()
    assert torch.equal(x.grad, output.detach())  # type: ignore[arg-type]
    assert 0 < output.count_nonzero() < 4000


def test_a_single_recurrent_layer_converts() -> None:
    converted = rad.convert(nn.RNN(3, 8, nonlinearity="relu"), rad.SameSample(0.5))
    output, _ = converted(torch.randn(4, 2, 3))
    assert output.shape == (4, 2, 8)


def test_using_a_sequence_found_unread_is_refused_clearly() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.RNN(3, 4, nonlinearity="relu")

        def forward(self, x: Tensor, read: bool = False) -> Tensor:
            output, state = self.rnn(x)
            if read is True:
                return output.sum()
            return state.sum()

    converted = rad.convert(Net(), rad.SameSample(0.5))
    x = torch.randn(5, 2, 3)
    converted(x)
    with pytest.raises(RuntimeError, match="sequence_read"):
        converted(x, read=True)


@pytest.mark.parametrize("reads_sequence", [False, True])
def test_a_sequence_nobody_reads_is_not_made(reads_sequence: bool) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.RNN(3, 4, nonlinearity="relu")

        def forward(self, x: Tensor) -> Tensor:
            output, state = self.rnn(x)
            return output.sum(0) + state[0] if reads_sequence else state[0]

    model = Net()
    converted = rad.convert(model, rad.SameSample(0.5))
    assert converted.get_submodule("rnn").sequence_read is reads_sequence
    x = torch.randn(5, 2, 3)
    torch.testing.assert_close(converted(x), model(x))
    torch.testing.assert_close(converted.eval()(x), model(x))


def test_honest_bytes_of_the_recurrent_net() -> None:
    model = rad.convert(models.build("irnn", (1, 28, 28), 10, seed=0), rad.DifferentSample(0.1))
    x, y = torch.rand(150, 1, 28, 28), torch.randint(10, (150,))
    honest = 150 * (4 * 785 * 10 + 4 * 784 + 784 * 100 / 8 + 10 * 4 + 8)
    measured = saved_bytes(lambda: F.cross_entropy(model(x), y))
    assert measured == pytest.approx(honest, rel=0.001)


def test_a_report_on_a_module_with_children_and_parameters() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.linear = nn.Parameter(torch.ones(3)), nn.Linear(3, 3)

    report = rad.report(rad.convert(nn.Sequential(Scaled()), rad.Project(0.5)))
    assert [row.name for row in report.left] == ["0"]


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (nn.Linear, "is the class Linear: give an instance"),
        (torch.relu, r"is a builtin_function_or_method: give a torch\.nn\.Module"),
        (nn.Sequential(nn.LazyConv2d(3, 3)), "layer '0' .* is lazy"),
    ],
)
def test_what_is_no_model_is_refused(model: nn.Module, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        rad.convert(model, rad.Project(0.5))


def test_a_lazy_layer_that_has_seen_an_input_is_converted() -> None:
    model = nn.Sequential(nn.LazyLinear(3))
    model(torch.rand(2, 5))
    assert type(rad.convert(model, rad.Project(0.5))[0]) is rad.nn.Linear  # type: ignore[index]
