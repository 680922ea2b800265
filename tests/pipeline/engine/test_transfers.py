"""Copies to a device and back, with the CPU as the device."""

from dataclasses import replace

import pytest
import torch
from jpegs import encode, photograph

from pipeline.engine.tiling import plan
from pipeline.engine.transfers import ImageState, TileTask, Transfers
from pipeline.jpeg.bitstream import read_bitstream

SIZE = 64, 64


def test_after_an_error_in_a_batch_each_tile_counts_again():
    c = read_bitstream(encode(photograph(*SIZE)), 1 << 20).coefficients
    tiles, images = plan(SIZE, 32, 0), torch.zeros(1, 3, *SIZE, dtype=torch.uint8)
    whole = ImageState(c, images, (0,), len(tiles))
    broken = ImageState(c, torch.zeros_like(images), (0,), 1)
    tasks = [TileTask(whole, tile) for tile in tiles]
    transfers = Transfers(torch.device("cpu"))

    def fill(tasks, value):
        for task in transfers.to_device(tasks):
            top, bottom, left, right = task.tile.core
            task.image.images[..., top:bottom, left:right] = value

    batch = [*tasks, TileTask(broken, tiles[0])]
    fill(batch, 100)
    broken.gpu_copy.image = replace(broken.gpu_copy.image, images=images[..., :8])  # cannot be copied back
    with pytest.raises(RuntimeError):
        transfers.to_host(batch, torch.zeros(len(batch)))
    for task in tasks:
        fill([task], 200)
        transfers.to_host([task], torch.zeros(1))()
    assert len(tiles) == 4
    assert (images == 200).all()
    assert whole.gpu_copy.image is None
