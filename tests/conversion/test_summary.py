"""What reports and audits print, and that they say the same."""

import re
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rad
from rad.conversion.reasons import TORCHS, UNCONVERTED
from rad.conversion.summary import LINES, LOSS, Row, grouped, next_step
from rad.errors import UsageError

BATCH = 8


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.act = nn.LayerNorm(width), nn.GELU()
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.act(self.up(self.norm(x))))  # type: ignore[no-any-return]


def blocks(count: int = 12) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(Block(16) for _ in range(count)))


def audited(model: nn.Module, full: bool = False) -> rad.Audit:
    x = torch.randn(BATCH, 16)
    return rad.audit(model, lambda: model(x).square().mean(), full=full)


def test_a_report_is_a_line_for_each_kind_and_one_on_what_to_do() -> None:
    text = str(rad.report(rad.convert(blocks(), rad.StochasticRounding(4))))
    sketch = "StochasticRounding(bits=4, block=None, zero_code=False)"
    assert text.splitlines() == [
        f"24 x Linear, 0.up .. 11.down: {sketch}",
        f"12 x GELU, 0.act .. 11.act: {sketch} of its derivative",
        "12 x LayerNorm, 0.norm .. 11.norm: what torch keeps: a norm, rounded where rad.convert is"
        " given path=",
        "next: most of what torch keeps is in 12 x LayerNorm: rad.convert(..., "
        "path=rad.DitheredRounding(4)) rounds what norms keep",
    ]


def test_an_audit_puts_what_keeps_most_first_and_adds_up() -> None:
    audit = audited(rad.convert(blocks(), rad.StochasticRounding(4)))
    *kinds, total, last = str(audit).splitlines()
    sizes = [int(line.split()[0].replace(",", "")) for line in kinds]
    assert sizes == sorted(sizes, reverse=True)
    assert sum(sizes) == audit.saved_bytes
    assert total.startswith(f"{audit.saved_bytes:,}  in all")
    assert [line.split("  ")[-1].split(",")[0].split(":")[0] for line in kinds] == [
        "12 x LayerNorm",
        "24 x Linear",
        "12 x GELU",
        LOSS,
    ]
    assert "path=rad.DitheredRounding(4)" in last
    rounded = rad.convert(blocks(), rad.StochasticRounding(4), path=rad.DitheredRounding(4))
    after = str(audited(rounded)).splitlines()
    assert TORCHS not in "\n".join(after)
    assert re.match(r"next: most, [\d,]+ bytes, is in 24 x Linear: a sketch that", after[-1])


def test_in_full_each_module_has_a_line() -> None:
    model = rad.convert(blocks(), rad.StochasticRounding(4))
    for text in (str(rad.report(model, full=True)), str(audited(model, full=True))):
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear | nn.GELU | nn.LayerNorm):
                assert sum(f"{type(module).__name__}, {name}: " in line + " " for line in
                           text.splitlines()) == 1  # fmt: skip


class Own(nn.Linear):
    """A subclass, which is left alone."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input)


class Many(nn.Module):
    """Subclasses of a layer with forward passes of their own, each a kind of its own."""

    def __init__(self) -> None:
        super().__init__()
        kinds = [type(f"Own{i}", (Own,), {}) for i in range(30)]
        self.layers = nn.ModuleList([nn.Linear(16, 16), *(kind(16, 16) for kind in kinds)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x).sin()
        return x


def test_at_most_so_many_lines_are_printed_and_the_rest_is_counted() -> None:
    model = rad.convert(Many(), rad.SameSample(0.5))
    for short, full in (
        (rad.report(model), rad.report(model, full=True)),
        (audited(model), audited(model, full=True)),
    ):
        assert len(str(short).splitlines()) == LINES < len(str(full).splitlines())
        assert "more kinds" in str(short)
        assert "more kinds" not in str(full)
        assert all(f"Own{i}, layers.{i + 1}: " in str(full) for i in range(30))
    (line,) = (line for line in str(audited(model)).splitlines() if "more kinds" in line)
    assert re.match(r"and \d+ more kinds \(\d+ parts, [\d,]+ bytes\): full=True", line)


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head, self.act = nn.Linear(16, 16), nn.Linear(16, 16), nn.GELU()
        self.scale = nn.Parameter(torch.ones(16))

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.layer(x)).tanh() + F.silu(x)
        x = F.layer_norm(x, (16,), self.scale)
        return self.head(self.act(x))  # type: ignore[no-any-return]


class Pooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(16, 16), nn.BatchNorm1d(16)
        self.pool = nn.MaxPool1d(2, return_indices=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.norm(self.layer(x)))[0]  # type: ignore[no-any-return]


MODELS: dict[str, Callable[[], nn.Module]] = {
    "blocks": lambda: blocks(2),
    "functional": Functional,
    "pooled": Pooled,
    "subclass": lambda: nn.Sequential(nn.Linear(16, 16), Own(16, 16), nn.LogSigmoid()),
}


@pytest.mark.parametrize("norms", [None, rad.DitheredRounding(4)], ids=["exact norms", "norms"])
@pytest.mark.parametrize("sketch", [rad.SameSample(0.5), rad.StochasticRounding(3), rad.Identity()])
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS.keys())
def test_report_and_audit_agree(
    make: Callable[[], nn.Module], sketch: rad.Sketch, norms: rad.Sketch | None
) -> None:
    """Of every module and function that both see: what it keeps, and what to do about it."""
    model = rad.convert(make(), sketch, path=norms, functions=False)
    report = rad.report(model)
    remedies = {
        (row.name, row.kind.partition(" (")[0].removeprefix("native_")): (row.keeps, row.remedy)
        for row in (*report.replaced, *report.left)
    }
    audit, found = audited(model), 0
    for row in audit.rows:
        if row.kind == LOSS:
            continue
        assert (row.keeps, row.remedy) == remedies[row.name, row.kind.removeprefix("native_")]
        found += 1
        unexpected = [words for words in audit.unexpected if f"`{row.name}` (" in words]
        if not row.kind.endswith("()"):
            assert bool(unexpected) == row.keeps.startswith(TORCHS)
    assert found >= 2


def test_a_gelu_is_told_alike_as_a_module_and_as_a_call() -> None:
    """What keeps torch's tensors where layers sample, and how to keep less of it."""
    model = rad.convert(Functional(), rad.SameSample(0.5))
    rows = {(row.name, row.kind): row for row in audited(model).rows}
    assert rows["", "gelu()"].remedy == "make it a torch.nn.GELU module"
    assert rows["act", "GELU"].keeps.startswith("what torch keeps: only StochasticRounding")
    assert "path=" in rows["", "native_layer_norm()"].remedy
    words = "\n".join(audited(model).unexpected)
    assert "`gelu1` is functional" in words
    assert "no RAD layer" not in words
    rounded = rad.convert(Functional(), {"act": rad.StochasticRounding(4)})
    assert not {row.keeps for row in audited(rounded).rows if row.name == "act"} & {TORCHS}


def test_a_model_that_is_not_converted_is_told_to_be() -> None:
    for model in (blocks(), Functional()):
        *_, last = str(rad.report(model)).splitlines()
        assert last.endswith(UNCONVERTED.remedy)
        with pytest.raises(UsageError, match=r"is not converted: audit what rad\.convert"):
            audited(model)
    with pytest.raises(UsageError, match=r"evaluation mode: call model\.train\(\)"):
        audited(rad.convert(blocks(), rad.SameSample(0.5)).eval())
    partly = nn.Sequential(rad.convert(blocks(1), rad.StochasticRounding(3)), nn.Linear(16, 16))
    assert str(audited(partly)).splitlines()[-1].endswith(UNCONVERTED.remedy)


def test_what_holds_most_is_named_by_bytes_and_by_its_remedy() -> None:
    rows = [
        Row("a", "Norm", TORCHS, "round", 60),
        Row("b", "Call", TORCHS, "make a module", 50),
        Row("c", "Other", TORCHS, "make a module", 20),
        Row("d", "Linear", "a sketch", "", 1000),
    ]
    assert next_step(rows) == (
        "next: most of what torch keeps is in 1 x Call and 1 x Other, 70 of 130 bytes: make a "
        "module"
    )
    assert grouped(rows)[0].what == "1 x Linear"
    assert next_step(rows[3:]).startswith("next: most, 1,000 bytes, is in 1 x Linear")
    assert "linear_cross_entropy" in next_step([Row("", LOSS, "outside", "", 10)])
    assert next_step([Row("a", "ReLU", "1 bit per unit", "", 0)]) == "next: nothing is kept"


def test_other_names_of_a_module_are_told_apart() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(16, 16)
            self.second = self.first

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x))  # type: ignore[no-any-return]

    model = rad.convert(Shared(), rad.SameSample(0.5))
    one, again, _ = str(rad.report(model)).splitlines()
    assert one.startswith("1 x Linear, first: SameSample")
    assert again.startswith("1 x Linear, second: SameSample")
    assert again.endswith("(further names of modules)")
    assert "Linear, first = second: " in str(audited(model, full=True))
