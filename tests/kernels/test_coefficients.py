"""Coefficients hold what a file says, and nothing that contradicts itself."""

import re

import pytest
import torch
from jpegs import SAMPLINGS
from torch import Tensor

from kernels import Coefficients, Subsampling

GEOMETRY = {  # at 17 rows and 33 columns: (MCUs, luma's true blocks, luma's blocks, chroma's size, true blocks, blocks)
    "gray": ((3, 5), (3, 5), (3, 5), None, None, None),
    "4:4:4": ((3, 5), (3, 5), (3, 5), (17, 33), (3, 5), (3, 5)),
    "4:2:2": ((3, 3), (3, 5), (3, 6), (17, 17), (3, 3), (3, 3)),
    "4:4:0": ((2, 5), (3, 5), (4, 5), (9, 33), (2, 5), (2, 5)),
    "4:2:0": ((2, 3), (3, 5), (4, 6), (9, 17), (2, 3), (2, 3)),
}


def zeros(sampling: Subsampling, size: tuple[int, int] = (17, 33), images: int = 2) -> tuple[list[Tensor], Tensor]:
    """(planes, tables) of steps 1."""
    grids = [sampling.plane_blocks(component, size) for component in range(sampling.components)]
    planes = [torch.zeros(images, *grid, 8, 8, dtype=torch.int16) for grid in grids]
    return planes, torch.ones(images, sampling.components, 8, 8, dtype=torch.int32)


def make(layout: Subsampling, **changes: object) -> Coefficients:
    planes, tables = zeros(layout)
    arguments = {"planes": tuple(planes), "tables": tables, "sampling": layout, "size": (17, 33)} | changes
    return Coefficients(**arguments)


@pytest.mark.parametrize("label", GEOMETRY)
def test_geometry_is_the_standards(label):
    sampling, size = Subsampling.from_label(label), (17, 33)
    mcus, luma_true, luma_all, chroma_size, chroma_true, chroma_all = GEOMETRY[label]
    assert sampling.mcu_grid(size) == mcus
    assert (sampling.true_blocks(0, size), sampling.plane_blocks(0, size)) == (luma_true, luma_all)
    assert sampling.component_size(0, size) == size
    for component in range(1, sampling.components):
        assert sampling.component_size(component, size) == chroma_size
        assert (sampling.true_blocks(component, size), sampling.plane_blocks(component, size)) == (
            chroma_true,
            chroma_all,
        )
    chroma_count = 2 * chroma_true[0] * chroma_true[1] if chroma_true else 0
    assert make(sampling).count == 64 * (luma_true[0] * luma_true[1] + chroma_count)


def test_labels_name_their_sampling():
    assert [sampling.label for sampling in Subsampling] == ["gray", "4:4:4", "4:2:2", "4:4:0", "4:2:0"]
    assert {Subsampling.from_label(label).label for label in SAMPLINGS} == set(SAMPLINGS)
    with pytest.raises(ValueError, match=r"'4:1:1': expected one of gray, 4:4:4, 4:2:2, 4:4:0, 4:2:0"):
        Subsampling.from_label("4:1:1")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": (0, 33)}, "image size (0, 33) is empty"),
        ({"size": (17, 16)}, "plane 0: expected [2, 4, 2, 8, 8] int16 for 4:2:0 at size (17, 16), got [2, 4, 6, 8, 8]"),
        ({"sampling": Subsampling.GRAY}, "tables: expected [N, 1, 8, 8] int32 for gray"),
        ({"sampling": Subsampling.S444}, "plane 0: expected [2, 3, 5, 8, 8] int16 for 4:4:4"),
        ({"tables": torch.ones(2, 3, 8, 8)}, "got [2, 3, 8, 8] torch.float32"),
        ({"tables": torch.ones(3, 3, 8, 8, dtype=torch.int32)}, "plane 0: expected [3, 4, 6, 8, 8]"),
        ({"tables": torch.ones(0, 3, 8, 8, dtype=torch.int32)}, "N at least 1, got [0, 3, 8, 8]"),
        ({"tables": torch.ones((), dtype=torch.int32)}, "tables: expected [N, 3, 8, 8] int32 for 4:2:0"),
        ({"planes": ()}, "4:2:0 has 3 planes, got 0"),
        ({"planes": tuple(p.int() for p in zeros(Subsampling.S420)[0])}, "got [2, 4, 6, 8, 8] torch.int32"),
        ({"planes": tuple(p.to("meta") for p in zeros(Subsampling.S420)[0])}, "plane 0 is on meta, the tables on cpu"),
    ],
)
def test_contradictions_are_refused(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make(Subsampling.S420, **changes)


def test_values_are_checked_on_demand():
    planes, tables = zeros(Subsampling.S420)
    c = Coefficients(tuple(planes), tables, Subsampling.S420, (17, 33))
    c.check_values()
    tables[1, 2, 3, 4] = 0
    with pytest.raises(ValueError, match="step below 1"):
        c.check_values()
    tables[1, 2, 3, 4] = 1
    for row, column in ((3, 0), (0, 5)):
        planes[0][1, row, column, 7, 7] = -1
        with pytest.raises(ValueError, match="plane 0 has padding blocks that are not zero"):
            c.check_values()
        planes[0][1, row, column, 7, 7] = 0
    c.check_values()


def test_mismatches_count_true_coefficients_for_each_image():
    mine, other = make(Subsampling.S420), make(Subsampling.S420)
    assert mine.mismatches(other).tolist() == [0, 0]
    mine.planes[0][1, 2, 4, 7, 7] = 1
    mine.planes[2][1, 1, 2] = -3
    mine.planes[1][0, 0, 0, 0, 0] = 5
    mine.planes[0][0, 3, 5] = 9  # padding
    assert mine.mismatches(other).tolist() == [1, 65]
    assert other.mismatches(mine).tolist() == [1, 65]
    with pytest.raises(ValueError, match="one sampling, size and number of images"):
        mine.mismatches(make(Subsampling.S444))


def test_length_and_device_are_those_of_the_tensors():
    c = make(Subsampling.S422)
    assert len(c) == 2
    assert c.device == torch.device("cpu")
    moved = c.to("meta")
    assert {tensor.device.type for tensor in (*moved.planes, moved.tables)} == {"meta"}
    assert (moved.sampling, moved.size) == (c.sampling, c.size)
