"""The canaries around outputs see a write on either side of one, and their memory tells what was never written."""

from __future__ import annotations

import pytest
import torch
from guarded_interpreter import MARGIN, alive, canaries, in_poison, nan_inside

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.int32, torch.int64)


def write(output: torch.Tensor, cell: int) -> None:
    """Write one cell, counted from the first of an output, wherever that is."""
    torch.as_strided(output, (1,), (1,), output.storage_offset() + cell).fill_(3)


@pytest.mark.parametrize("cell", [-MARGIN, -1, 12, 11 + MARGIN], ids=["first", "before", "after", "last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_write_outside_an_output_is_caught(dtype: torch.dtype, cell: int):
    with pytest.raises(AssertionError, match="wrote outside an output"), canaries():
        first, _ = torch.empty(3, 4, dtype=dtype), torch.empty((5,), dtype=dtype)
        write(first, cell)
    with pytest.raises(AssertionError, match="wrote outside an output"), canaries():
        write(torch.empty_like(torch.ones(3, 4, dtype=dtype)), cell)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_output_begins_unwritten_and_may_be_written_from_end_to_end(dtype: torch.dtype):
    with canaries():
        for output in (torch.empty(3, 4, dtype=dtype), torch.empty((3, 4), dtype=dtype, device="cpu")):
            assert output.shape == (3, 4) and output.is_contiguous() and output.dtype == dtype
            assert (
                (output == -77).all() if not dtype.is_floating_point and not dtype.is_complex else output.isnan().all()
            )
            for cell in range(12):
                write(output, cell)
            assert (output == 3).all()
        assert torch.empty(0, dtype=dtype).shape == (0,) and torch.empty((), dtype=dtype).shape == ()
        assert torch.empty(2, 2**40, dtype=dtype, device="meta").is_meta


def test_outputs_made_otherwise_are_noticed_and_torch_is_put_back():
    before = torch.empty, torch.empty_like
    with pytest.raises(AssertionError, match=r"allocates its outputs with torch\.empty"), canaries():
        torch.zeros(3)
    assert (torch.empty, torch.empty_like) == before


@pytest.mark.parametrize("cell", [-MARGIN, -1, 12, 11 + MARGIN])
def test_an_output_that_a_kernel_is_given_has_canaries_too(cell: int):
    output, around = nan_inside(3, 4)
    assert output.isnan().all()
    output.fill_(3)
    assert alive(around)
    write(output, cell)
    assert not alive(around)


@pytest.mark.parametrize("cell", [-MARGIN, -1, 12, 11 + MARGIN])
def test_a_read_outside_an_input_is_nan(cell: int):
    x = torch.randn(3, 4, dtype=torch.complex64)
    inside = in_poison(x)
    assert torch.equal(inside, x)
    assert torch.as_strided(inside, (1,), (1,), inside.storage_offset() + cell).isnan().all()
