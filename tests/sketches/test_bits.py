import torch
from hypothesis import given
from hypothesis import strategies as st

from rad.sketches.bits import pack, packed_bytes, unpack


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
