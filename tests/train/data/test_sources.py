"""Sources of crops: what a step shows is the same for any number of ranks, and at any time."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from training import changed, config_of

from pipeline.inputs.listing import SourceError
from train.checks import ConfigError
from train.data.sources import DaliSource, MemorySource, open_source
from train.distributed import Ranks

HEIGHT, WIDTH, CROP = 60, 72, 32


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """PNGs whose pixels say where they are: (y, x, image) in the channels."""
    folder = tmp_path_factory.mktemp("pictures")
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    for number in range(7):
        file = io.BytesIO()
        Image.fromarray(np.stack([y, x, np.full_like(y, number)], -1).astype(np.uint8)).save(file, "PNG")
        (folder / f"{number}.png").write_bytes(file.getvalue())
    return folder


def of(source, config, rank=0, size=1):
    """A source of either kind."""
    ranks = Ranks(rank, size)
    if source is DaliSource:
        return DaliSource(config, ranks)
    y, x = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    images = [torch.stack([y, x, torch.full_like(y, number)]).byte() for number in range(7)]
    return MemorySource(images, config, ranks)


@pytest.fixture(params=[MemorySource, DaliSource])
def source(request, monkeypatch, tmp_path):
    if request.param is DaliSource:
        pytest.importorskip("nvidia.dali")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return request.param


def crops_of(pictures, tmp_path, orientations):
    config = config_of(pictures, tmp_path)
    return changed(config, {"data": {"train": [str(pictures)], "batch": 12, "orientations": orientations}})


def test_ranks_share_out_what_one_would_have_seen_and_any_step_can_be_had_again(pictures, tmp_path, source):
    config = crops_of(pictures, tmp_path, 2)
    whole = of(source, config)
    shares = [of(source, config, rank, 3) for rank in range(3)]
    steps = {step: whole.batch(step) for step in (0, 1, 2)}
    for step, crops in steps.items():
        assert (tuple(crops.shape), crops.dtype) == ((12, 3, CROP, CROP), torch.uint8)
        assert torch.equal(torch.cat([share.batch(step) for share in shares]), crops)
    assert torch.equal(whole.batch(1), steps[1])
    later = of(source, config)
    later.load_state_dict(whole.state_dict())
    assert torch.equal(later.batch(2), steps[2])
    for one in (whole, later, *shares):
        one.close()


@pytest.mark.parametrize("orientations", [1, 2, 8])
def test_crops_lie_as_they_were_told_to(pictures, tmp_path, source, orientations):
    opened = of(source, crops_of(pictures, tmp_path, orientations))
    seen = set()
    for crop in torch.cat([opened.batch(step) for step in range(8)]).int():
        down, across = crop[:2, 1, 0] - crop[:2, 0, 0], crop[:2, 0, 1] - crop[:2, 0, 0]
        seen.add((*down.tolist(), *across.tolist()))
        corner = crop[:2].amin((1, 2))
        assert ((crop[:2] - corner[:, None, None]).amax((1, 2)) == CROP - 1).all()
    opened.close()
    assert len(seen) == orientations
    upright, mirrored = (1, 0, 0, 1), (1, 0, 0, -1)
    assert seen >= {upright, mirrored} if orientations > 1 else seen == {upright}


def test_crops_are_larger_in_the_second_half(pictures, tmp_path, source):
    """By the step alone, so that a resumed run has the same."""
    config = changed(crops_of(pictures, tmp_path, 8), {"data": {"late_crop": 48}, "optimiser": {"steps": 7}})
    opened = of(source, config)
    assert [opened.batch(step).shape[-2:] for step in range(6)] == 3 * [(CROP, CROP)] + 3 * [(48, 48)]
    resumed = of(source, config)
    resumed.load_state_dict(opened.state_dict())
    assert torch.equal(resumed.batch(6), opened.batch(6))
    for one in (opened, resumed):
        one.close()


def test_what_cannot_be_opened_is_an_error_that_says_why(tmp_path):
    config = config_of(tmp_path, tmp_path)
    with pytest.raises(SourceError, match=r"train\.tar"):
        open_source(config, Ranks())
    with pytest.raises(ConfigError, match=r"data\.batch"):
        of(MemorySource, config, 0, 3)
