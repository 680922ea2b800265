"""Memory that processes share: pieces that never overlap, and come back."""

import mmap
import random

import pytest
import torch
from jpegs import SAMPLINGS, encode, photograph

from kernels import Subsampling
from pipeline.engine.memory import ALIGNMENT, Buffers, SharedMemory, bytes_needed
from pipeline.jpeg.bitstream import read_bitstream, read_layout, read_scans


def test_pieces_do_not_overlap_and_all_of_it_comes_back():
    chance, size = random.Random(1), 1 << 16
    memory, pieces, refused = SharedMemory(size), [], 0
    for number in range(2000):
        if pieces and chance.random() < 0.48:
            at = chance.randrange(len(pieces))
            piece, value = pieces.pop(at)
            assert (piece == value).all()
            memory.free(piece)
            continue
        piece = memory.allocate(chance.randrange(1, 6000))
        if piece is None:
            refused += 1
            continue
        assert piece.data_ptr() % ALIGNMENT == memory._bytes.data_ptr() % ALIGNMENT
        piece.fill_(number % 251)
        pieces.append((piece, number % 251))
    assert refused > 10
    for piece, value in pieces:
        assert (piece == value).all()
        memory.free(piece)
    assert memory.allocate(size + 1) is None
    assert memory.allocate(size).numel() == size


def test_low_addresses_first_so_that_little_is_touched():
    memory = SharedMemory(1 << 30)
    for _ in range(100):
        piece = memory.allocate(1000)
        assert piece.storage_offset() == 0
        memory.free(piece)


def test_no_piece_is_page_locked_in_part():
    chance, memory, pieces, limit = random.Random(2), SharedMemory(1 << 16), [], 20_000 // ALIGNMENT * ALIGNMENT
    memory._pinned = limit  # as `pin` sets it, which needs a GPU
    crossed = 0
    for _ in range(2000):
        if pieces and chance.random() < 0.48:
            memory.free(pieces.pop(chance.randrange(len(pieces))))
        elif (piece := memory.allocate(chance.randrange(1, 6000))) is not None:
            start = piece.storage_offset()
            assert start >= limit or start + piece.numel() <= limit
            crossed += start == limit
            pieces.append(piece)
    assert crossed > 5
    for piece in pieces:
        memory.free(piece)
    assert memory.allocate(limit).storage_offset() == 0
    assert memory.allocate((1 << 16) - limit).storage_offset() == limit


def test_large_pieces_are_given_back_to_the_system():
    memory = SharedMemory(64 << 20)
    low, piece = memory.allocate(100), memory.allocate(32 << 20)
    low.fill_(7)
    piece.fill_(7)
    memory.free(piece)
    assert (low == 7).all()
    again = memory.allocate(32 << 20)
    inner = slice(mmap.PAGESIZE, -mmap.PAGESIZE)
    assert (again[inner] == 0).all()


@pytest.mark.parametrize("sampling", [*SAMPLINGS, "gray"])
@pytest.mark.parametrize("size", [(1, 1), (61, 83), (64, 48)])
def test_what_a_file_says_is_read_into_buffers_of_any_content(sampling, size):
    data = encode(photograph(*size), sampling, 50)
    expected, layout = read_bitstream(data).coefficients, read_layout(data)
    memory = torch.full((bytes_needed(layout.sampling, size, 2),), 0xA5, dtype=torch.uint8)
    buffers = Buffers.from_memory(memory, layout.sampling, size, 2)
    found = read_scans(layout, data, buffers.planes).coefficients
    for planes in (found.planes, buffers.fill(found).planes, buffers.fill(expected).planes):
        assert all(torch.equal(a, b) for a, b in zip(planes, expected.planes, strict=True))
    assert torch.equal(buffers.tables, expected.tables)
    assert buffers.images.shape == (2, 1 if sampling == "gray" else 3, *size)
    assert buffers.images.permute(0, 2, 3, 1).is_contiguous()
    buffers.images.fill_(1)
    assert all(torch.equal(a, b) for a, b in zip(buffers.planes, expected.planes, strict=True))


def test_a_progressive_file_of_odd_size_is_read_into_buffers_of_any_content():
    data = encode(photograph(77, 101), "4:2:0", 50, progressive=True)
    expected, layout = read_bitstream(data).coefficients, read_layout(data)
    memory = torch.full((bytes_needed(Subsampling.S420, (77, 101), 1),), 0xA5, dtype=torch.uint8)
    found = read_scans(layout, data, Buffers.from_memory(memory, Subsampling.S420, (77, 101), 1).planes).coefficients
    assert all(torch.equal(a, b) for a, b in zip(found.planes, expected.planes, strict=True))
