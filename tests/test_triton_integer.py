"""libjpeg-turbo's forward path in Triton's integers is kernels/libjpeg.py's, bit for bit."""

import pytest
import torch
import triton
import triton.language as tl
from scenes import pictures

from kernels import Subsampling
from kernels.libjpeg import integer_forward as integer_forward_in_torch
from kernels.mcu import put_blocks, regions, to_tiles
from kernels.triton_ops.blocks import coefficient_offsets, pack, spot
from kernels.triton_ops.edges import load_rgb
from kernels.triton_ops.exact import eight_bits
from kernels.triton_ops.integer import integer_forward

ALL = pytest.mark.parametrize("sampling", Subsampling, ids=lambda sampling: sampling.label)


@triton.jit
def forward_kernel(
    x, luma, blue, red, mcus, rows, columns, height, width, stride_n, stride_c, stride_h, stride_w,
    C: tl.constexpr, V: tl.constexpr, G: tl.constexpr, H: tl.constexpr,
):  # fmt: skip
    image, row, column, valid = spot(mcus, rows, columns, V, G, H)
    r, g, b = load_rgb(x, image, row, column, valid, height, width, stride_n, stride_c, stride_h, stride_w, C, V)
    y, cb, cr = integer_forward(eight_bits(r), eight_bits(g), eight_bits(b), row, height, C, V, G, H)
    where = coefficient_offsets(image, row, column, rows * V, columns * H)
    tl.store(luma + where, tl.reshape(pack(y), where.shape), mask=valid[:, None])
    if C == 3:
        image, row, column, valid = spot(mcus, rows, columns, 1, G, 1)
        where = coefficient_offsets(image, row, column, rows, columns)
        tl.store(blue + where, tl.reshape(pack(cb), where.shape), mask=valid[:, None])
        tl.store(red + where, tl.reshape(pack(cr), where.shape), mask=valid[:, None])


@ALL
@pytest.mark.parametrize("size", [(1, 1), (17, 34), (34, 17), (50, 33), (32, 64)])
def test_integers_are_libjpegs(sampling, size, device, seed):
    x = pictures(2, sampling, size, torch.uint8)
    x[1] = torch.randint(0, 256, x[1].shape)
    (vertical, horizontal), (rows, columns) = sampling.factors, sampling.mcu_grid(size)
    shapes = [sampling.plane_blocks(component, size) for component in range(sampling.components)]
    expected = [torch.zeros(2, *shape, 8, 8, dtype=torch.int32) for shape in shapes]
    found = [torch.full_like(plane, -99).to(device) for plane in expected]
    for region in (region for row in regions(sampling, size, 2) for region in row):
        dcts = integer_forward_in_torch(to_tiles(x, region).float(), region.mcu)
        for component, dct in enumerate(dcts.split(region.mcu.blocks(sampling.components), -2)):
            put_blocks(expected[component], component, region, dct.int())
    group = 16
    grid = (triton.cdiv(2 * rows * columns, group),)
    planes, there = (found * 3)[:3], x.to(device)
    forward_kernel[grid](
        there, *planes, 2 * rows * columns, rows, columns, *size, *there.stride(),
        C=sampling.components, V=vertical, G=group, H=horizontal,
    )  # fmt: skip
    for component, (mine, theirs) in enumerate(zip(found, expected, strict=True)):
        true_rows, true_columns = sampling.true_blocks(component, size)
        assert torch.equal(mine.cpu()[:, :true_rows, :true_columns], theirs[:, :true_rows, :true_columns])
