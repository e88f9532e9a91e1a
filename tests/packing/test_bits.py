import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rad import backends
from rad.packing.bits import (
    PIECE,
    index_width,
    pack,
    pack_integers,
    packed_bytes,
    packed_width,
    unpack,
    unpack_integers,
)


@given(st.lists(st.booleans(), max_size=70))
def test_bit_j_of_byte_i_is_element_8i_plus_j(values: list[bool]) -> None:
    mask = torch.tensor(values, dtype=torch.bool)
    packed = pack(mask)
    assert packed.dtype == torch.uint8
    assert packed.numel() == packed_bytes(len(values))
    bits = [(int(packed[i // 8]) >> (i % 8)) & 1 for i in range(len(values))]
    assert bits == [int(v) for v in values]
    assert torch.equal(unpack(packed, mask.shape), mask)


def test_shapes_and_strides() -> None:
    mask = (torch.rand(5, 3, 7) > 0.5).transpose(0, 2)
    assert torch.equal(unpack(pack(mask), mask.shape), mask)


@pytest.mark.parametrize("count", [PIECE, 2 * PIECE + 13])
def test_in_pieces_and_of_numbers(count: int) -> None:
    numbers = torch.randn(count).relu_()
    packed = pack(numbers)
    assert packed.numel() == packed_bytes(count)
    assert torch.equal(packed[-9:], pack(numbers[(packed.numel() - 9) * 8 :]))
    assert torch.equal(unpack(packed, numbers.shape), numbers != 0)
    assert torch.equal(unpack(packed, numbers.shape, torch.float16), (numbers != 0).half())


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 4095, 4096, 4099, 9000])
@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str
)
def test_compiled_loops_give_the_same(
    dtype: torch.dtype, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = torch.randn(count).relu_()
    special = torch.tensor([-0.0, torch.nan, -torch.nan, torch.inf, -torch.inf, 1e-45, -1e-45])
    numbers[: len(special)] = special[:count]
    numbers = numbers.to(dtype)
    strided = numbers.expand(3, count).t()

    def both() -> list[torch.Tensor]:
        packed = pack(numbers)
        return [packed, pack(strided), unpack(packed, numbers.shape, dtype)]

    in_loops = both()
    monkeypatch.setattr(backends, "in_loops", lambda x: False)
    assert all(map(torch.equal, in_loops, both()))


def test_bits_that_are_too_few_are_refused() -> None:
    with pytest.raises(RuntimeError):
        unpack(torch.zeros(2, dtype=torch.uint8), torch.Size([17]))


@given(st.sampled_from([1, 2, 4, 8, 16, 32, 64]), st.data())
def test_integers_of_any_width(width: int, data: st.DataObject) -> None:
    values = data.draw(st.lists(st.integers(0, (1 << min(width, 31)) - 1), max_size=40))
    integers = torch.tensor(values, dtype=torch.int64)
    packed = pack_integers(integers, width)
    assert packed.nbytes == -(-len(values) * width // 8)
    assert torch.equal(unpack_integers(packed, width, integers.shape), integers)


def test_width_of_an_offset() -> None:
    widths = [packed_width(n) for n in (1, 2, 3, 4, 5, 16, 17, 256, 257, 1 << 16)]
    assert widths == [1, 1, 2, 2, 4, 4, 8, 8, 16, 16]
    with pytest.raises(ValueError, match="16 bits"):
        packed_width((1 << 16) + 1)
    beyond = [1 << 16, (1 << 16) + 1, 1 << 31, (1 << 31) + 1]
    assert [index_width(n) for n in beyond] == [16, 32, 32, 64]
