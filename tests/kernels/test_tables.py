"""Tables are libjpeg's, and a quality is found again from its tables."""

import io

import pytest
import torch
from PIL import Image
from torch._subclasses.fake_tensor import FakeTensorMode

from kernels.tables import constant, dct_basis, nearest_quality, quality_to_tables, zigzag

# T.81, figure 5: the place of each natural index in the scan.
# fmt: off
SCAN_PLACES = [
    0,  1,  5,  6, 14, 15, 27, 28,
    2,  4,  7, 13, 16, 26, 29, 42,
    3,  8, 12, 17, 25, 30, 41, 43,
    9, 11, 18, 24, 31, 40, 44, 53,
   10, 19, 23, 32, 39, 45, 52, 54,
   20, 22, 33, 38, 46, 51, 55, 60,
   21, 34, 37, 47, 50, 56, 59, 61,
   35, 36, 48, 49, 57, 58, 62, 63]
# fmt: on


def pillow_tables(quality: int, mode: str) -> list[list[int]]:
    file = io.BytesIO()
    Image.new(mode, (8, 8)).save(file, "JPEG", quality=quality)
    tables = Image.open(file).quantization
    return [list(tables[i]) for i in range(len(tables))]


@pytest.mark.parametrize("quality", range(1, 101))
def test_tables_of_a_quality_are_pillows_and_name_it_again(quality):
    luma, chroma = pillow_tables(quality, "RGB")
    assert quality_to_tables(quality, 3).flatten(1).tolist() == [luma, chroma, chroma]
    assert quality_to_tables(quality, 1).flatten(1).tolist() == pillow_tables(quality, "L")
    assert nearest_quality(quality_to_tables(quality, 3)) == quality
    assert nearest_quality(quality_to_tables(quality, 1)) == quality


def test_nearest_quality_of_other_tables_is_in_range_and_close():
    assert nearest_quality(torch.full((1, 8, 8), 1, dtype=torch.int32)) == 100
    assert nearest_quality(torch.full((3, 8, 8), 65535, dtype=torch.int32)) == 1
    almost = quality_to_tables(40, 3)
    almost[0, 3, 3] += 1
    assert nearest_quality(almost) == 40


@pytest.mark.parametrize(("quality", "components"), [(-1, 3), (0, 3), (101, 3), (50.5, 3), (50, 0)])
def test_other_qualities_are_refused(quality, components):
    with pytest.raises(ValueError, match=f"a quality of 1..100 and components, got {quality} and {components}"):
        quality_to_tables(quality, components)


def test_zigzag_is_the_standards():
    assert [SCAN_PLACES[natural] for natural in zigzag().tolist()] == list(range(64))


def test_basis_is_orthonormal_and_its_rows_are_the_frequencies():
    basis = dct_basis(torch.float64)
    assert torch.allclose(basis @ basis.T, torch.eye(8, dtype=torch.float64), atol=1e-14)
    crossings = (basis[:, 1:] * basis[:, :-1] < 0).sum(1)
    assert crossings.tolist() == list(range(8))
    assert bool((basis[:, 0] > 0).all())


def test_constants_have_values_after_a_pass_without():
    calls = []

    @constant
    def made():
        calls.append(1)
        return torch.arange(3)

    with FakeTensorMode():
        assert type(made()) is not torch.Tensor
    assert made().tolist() == [0, 1, 2]
    assert made() is made()
    assert len(calls) == 2
