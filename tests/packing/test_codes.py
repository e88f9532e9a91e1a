import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rad.packing.codes import PLANES, code_bytes, pack_codes, unpack_codes


@given(st.sampled_from(list(PLANES)), st.integers(1, 3), st.integers(0, 40), st.data())
def test_every_code_comes_back(bits: int, lead: int, count: int, data: st.DataObject) -> None:
    values = st.lists(st.integers(0, (1 << bits) - 1), min_size=count, max_size=count)
    rows = [data.draw(values) for _ in range(lead)]
    codes = torch.tensor(rows, dtype=torch.uint8).view(lead, count)
    planes = pack_codes(codes, bits)
    assert sum(p.nbytes for p in planes) == lead * code_bytes(count, bits)
    assert torch.equal(unpack_codes(planes, bits)[:, :count], codes)
    one_more = pack_codes(torch.cat([codes, codes], 1)[:, :count], bits)
    assert all(map(torch.equal, planes, one_more))


@pytest.mark.parametrize("bits", list(PLANES))
def test_bytes_have_no_gaps_and_vmap_packs_too(bits: int) -> None:
    assert code_bytes(8, bits) == bits
    assert code_bytes(9, bits) == 2 * bits
    codes = (torch.arange(3 * 16).view(3, 16) * 37 % (1 << bits)).to(torch.uint8)
    planes = torch.vmap(lambda row: pack_codes(row, bits))(codes)
    assert all(map(torch.equal, planes, pack_codes(codes, bits)))
    assert torch.equal(torch.vmap(lambda *p: unpack_codes(p, bits))(*planes), codes)
