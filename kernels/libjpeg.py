"""libjpeg-turbo's forward path, bit for bit: colour conversion, downsampling, the `islow` integer DCT and quantisation.

q = sign(f) ((|f| + 4 Q) // 8 Q),  f = 8 DCT(downsample(YCC(x))), each step rounded as libjpeg rounds it

Shapes: N images, C components, P pixels of an MCU, B blocks of an MCU; images [N, C, H, W] uint8.

Every value is an integer held in a float: float32 where all partial sums stay below 2^24 (float64 in matrix products
on CUDA, where those of float32 may be of TF32), float64 in the DCT's second pass. `floor(x / 2^n)` is C's arithmetic
shift. Source: the behaviour of libjpeg-turbo's default encoder (the tests' oracle is Pillow's copy of it); the DCT is
Loeffler, Ligtenberg and Moschytz's with 13-bit constants.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.coefficients import Coefficients, Subsampling, check_images
from kernels.tables import constant
from kernels.torch_ops.blocks import Mcu, empty_planes, flat_regions, keep_true_blocks, put_blocks, to_tiles
from kernels.torch_ops.dct import steps_of


@constant
def integer_basis() -> Tensor:
    """[8, 8] float64 of integers: one pass of the transform, its constants rounded to 13 bits; row k is frequency k."""
    x = torch.eye(8, dtype=torch.float64)
    even, odd = x[:4] + x[[7, 6, 5, 4]], x[:4] - x[[7, 6, 5, 4]]
    sums, differences = even[:2] + even[[3, 2]], even[:2] - even[[3, 2]]
    z1 = (differences[0] + differences[1]) * 4433
    t4, t5, t6, t7 = odd[3], odd[2], odd[1], odd[0]
    z5 = (t4 + t6 + t5 + t7) * 9633
    y1, y2 = (t4 + t7) * -7373, (t5 + t6) * -20995
    y3, y4 = (t4 + t6) * -16069 + z5, (t5 + t7) * -3196 + z5
    return torch.stack(
        (
            (sums[0] + sums[1]) * 8192,
            t7 * 12299 + y1 + y4,
            z1 + differences[0] * 6270,
            t6 * 25172 + y2 + y3,
            (sums[0] - sums[1]) * 8192,
            t5 * 16819 + y2 + y4,
            z1 - differences[1] * 15137,
            t4 * 2446 + y1 + y3,
        )
    )


@constant
def _passes(device: torch.device) -> tuple[Tensor, Tensor]:
    """[64, 64] each: the transform of a flattened block's rows, scaled for the shift after it, and of its columns."""
    identity = torch.eye(8, dtype=torch.float64)
    rows = torch.kron(identity, integer_basis()).T / 2**11
    columns = torch.kron(integer_basis(), identity).T / 2**15
    return rows.to(_exact(device)).contiguous().to(device), columns.contiguous().to(device)


def _exact(device: torch.device) -> torch.dtype:
    """The dtype in which a matrix product is exact for integers below 2^24."""
    return torch.float64 if device.type == "cuda" else torch.float32


def integer_dct(blocks: Tensor) -> Tensor:
    """[..., 64] samples less 128 (integers in float32) → 8 times their DCT, rounded as libjpeg rounds; float64.

    Scaling the matrices by a power of two is exact, and so is adding a half before the floor."""
    rows, columns = _passes(blocks.device)
    first = (blocks.to(rows.dtype) @ rows).add_(0.5).floor_()
    return (first.double() @ columns).add_(0.5).floor_()


def integer_ycc(rgb: Tensor) -> list[Tensor]:
    """[..., 3, P] → three [..., P]: Y, Cb, Cr, less 128, in 16-bit fixed point; all sums stay below 2^24."""
    red, green, blue = rgb.unbind(-2)

    def weigh(r: int, g: int, b: int, offset: int) -> Tensor:
        total = (red * (r / 65536)).add_(green, alpha=g / 65536).add_(blue, alpha=b / 65536)
        return total.add_(offset / 65536 - 128).floor_()

    return [
        weigh(19595, 38470, 7471, 32768),
        weigh(-11059, -21709, 32768, 8388608 + 32767),
        weigh(32768, -27439, -5329, 8388608 + 32767),
    ]


@constant
def _downsampling(mcu: Mcu, device: torch.device) -> tuple[Tensor, Tensor]:
    """Sums of pixels under each chroma sample over their number, [P, 64], and what is added before the floor, [64]."""
    vertical, horizontal = mcu.sampling.factors
    count = vertical * horizontal
    odd = (torch.arange(64) % 2).float()
    bias = {1: 0 * odd, 2: odd if horizontal == 2 else odd * 0 + 1, 4: 1 + odd}[count]
    return (mcu.chroma_sums() / count).to(device, _exact(device)), (bias / count).to(device)


@constant
def _luma_source(mcu: Mcu, device: torch.device) -> Tensor:
    return mcu.luma_source().to(device)


def integer_forward(tiles: Tensor, mcu: Mcu) -> Tensor:
    """MCUs [..., C, P] of integers 0..255 (float32) → 8 times the DCT (float64) [..., B, 64], luma's blocks first.

    Blocks beyond the image hold what the repeated edge gives; they are padding."""
    luma, *chroma = integer_ycc(tiles) if tiles.shape[-2] == 3 else [tiles[..., 0, :] - 128]
    if not mcu.whole:
        luma = luma[..., _luma_source(mcu, tiles.device)]
    blocks = luma.unflatten(-1, (-1, 64))
    if chroma:
        sums, bias = _downsampling(mcu, tiles.device)
        averages = (torch.stack(chroma, -2).to(sums.dtype) @ sums).add_(bias).floor_()
        blocks = torch.cat((blocks, averages.to(blocks.dtype)), -2)
    return integer_dct(blocks)


def quantise(dct: Tensor, steps: Tensor) -> Tensor:
    """8 times the DCT and steps Q → sign(c) ((|c| + 4 Q) // 8 Q), exact: a quotient is an integer or far from one."""
    return torch.copysign(((dct.abs() + 4 * steps) / (8 * steps)).floor_(), dct)


def compress(image: Tensor, tables: Tensor, sampling: Subsampling) -> Coefficients:
    """What libjpeg-turbo's default encoder (`islow`) makes of uint8 images [N, C, H, W] with tables [N, C, 8, 8] int32.

    Raises ValueError for other shapes or dtypes."""
    if image.dtype != torch.uint8:
        raise ValueError(f"images: expected uint8, got {image.dtype}")
    check_images(image, tables, sampling)
    images, size = image.shape[0], (image.shape[2], image.shape[3])
    planes = empty_planes(sampling, size, images, image.device)
    for region in flat_regions(sampling, size, images, image.is_cuda):
        with torch.autocast(image.device.type, enabled=False):  # which would multiply in bfloat16
            dcts = integer_forward(to_tiles(image, region).float(), region.mcu)
        for component, dct in enumerate(dcts.split(region.mcu.blocks(sampling.components), -2)):
            quantised = quantise(dct, steps_of(tables, component, dct.dtype))
            put_blocks(planes[component], component, region, quantised.to(torch.int16))
    return keep_true_blocks(Coefficients(planes, tables, sampling, size))
