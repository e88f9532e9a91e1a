import pytest
from hypothesis import given
from hypothesis import strategies as st

from rad.errors import UsageError
from rad.memory.budget import largest_multiple, largest_within, parse_budget


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        (0.1, "fraction", 0.1),
        (1, "fraction", 1),
        (1.0, "fraction", 1),
        (2, "bytes", 2),
        (3_300_000.0, "bytes", 3_300_000),
        ("3.3 MB", "bytes", 3_300_000),
        ("3.3MB", "bytes", 3_300_000),
        ("1.5 KiB", "bytes", 1536),
        ("2e3 kB", "bytes", 2_000_000),
        ("17 B", "bytes", 17),
        ("full", "full", 1),
    ],
)
def test_grammar(text: str | float, kind: str, value: float) -> None:
    budget = parse_budget(text)
    assert (budget.kind, budget.value) == (kind, value)


NUMBERS = [0, 0.0, -1, -0.5, 1.5, float("nan"), float("inf"), True, 10**400]
TEXTS = ["", "0.1", "3", "3 mb", "3 TB", "MB", "-3 MB", "0 B", "0.2 B", "all", "3 MB/s", "1e400 B"]


@pytest.mark.parametrize("text", [*NUMBERS, *TEXTS])
def test_everything_else_is_refused_with_the_remedy(text: str | float) -> None:
    with pytest.raises(UsageError, match="give a fraction") as error:
        parse_budget(text)
    assert "\n" not in str(error.value)


@given(st.lists(st.integers(0, 50)), st.integers(-1, 51))
def test_largest_within(costs: list[int], limit: int) -> None:
    costs.sort()
    best = largest_within(range(len(costs)), costs.__getitem__, limit)
    fitting = [i for i, cost in enumerate(costs) if cost <= limit]
    assert best == (fitting[-1] if fitting else None)


@given(st.integers(1, 9), st.integers(1, 50), st.integers(0, 5000))
def test_largest_multiple(step: int, slope: int, limit: int) -> None:
    asked = []

    def cost(number: int) -> int:
        asked.append(number)
        return 17 + slope * number

    found = largest_multiple(step, cost, limit)
    assert found == (max(0, limit - 17) // slope // step * step or None)
    assert all(number % step == 0 for number in asked)
    assert max(asked) <= max(step, 2 * (found or 0))
