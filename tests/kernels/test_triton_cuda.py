"""What the operators promise on a GPU only: graph capture, other streams and devices, the same result in every run and
with every launch configuration, tensors beyond 2^31 elements."""

import pytest
import torch
from scenes import pictures, tables_of

import kernels
from kernels import Coefficients, Subsampling

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

ALL = pytest.mark.parametrize("sampling", Subsampling, ids=lambda sampling: sampling.label)


def problem(sampling: Subsampling, device: str = "cuda"):
    """An image near a file's, the file, and all operators, each as a function of the image."""
    x = pictures(2, sampling, (130, 75)).clamp(0, 255)
    tables = torch.cat([tables_of(quality, sampling) for quality in (10, 75)]).to(device)
    c = kernels.encode(x.to(device), tables, sampling)
    noisy = (kernels.decode(c) + 3 * torch.randn(x.shape).to(device)).clamp(0, 255)
    return noisy, {
        "encode": lambda x: kernels.encode(x, tables, sampling).planes,
        "decode": lambda x: (kernels.decode(c),),
        "roundtrip": lambda x: (kernels.roundtrip(x, tables, sampling),),
        "project": lambda x: (kernels.project(x, c),),
        "project_exact": lambda x: kernels.project_exact(x, c),
    }


def same(first, second) -> bool:
    return all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(first, second, strict=True))


@ALL
def test_every_run_gives_the_same(sampling, seed):
    x, operators = problem(sampling)
    for operator in operators.values():
        expected = [entry.clone() for entry in operator(x)]
        assert all(same(operator(x), expected) for _ in range(5))


@ALL
def test_a_captured_graph_works_on_new_input(sampling, seed):
    x, operators = problem(sampling)
    other = problem(sampling)[0]
    for operator in operators.values():
        held = x.clone()
        operator(held)  # compiles and chooses a configuration, which no capture can
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = operator(held)
        held.copy_(other)
        graph.replay()
        assert same(result, operator(other))


@ALL
def test_other_streams(sampling, seed):
    x, operators = problem(sampling)
    stream = torch.cuda.Stream()
    for operator in operators.values():
        expected = [entry.clone() for entry in operator(x)]
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(50_000_000)  # what was launched on another stream would not wait for this
            late = torch.zeros_like(x)
            late.copy_(x)
            result = operator(late)
        stream.synchronize()
        assert same(result, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@ALL
def test_a_device_that_is_not_the_current_one(sampling, seed):
    _, operators = problem(sampling)
    torch.manual_seed(seed)
    there, operators_there = problem(sampling, "cuda:1")
    assert torch.cuda.current_device() == 0
    for name, operator in operators_there.items():
        assert same(operator(there), operators[name](there.to("cuda:0")))


@ALL
def test_gradients_of_every_run_are_the_same(sampling, seed):
    x, operators = problem(sampling)
    for name in ("roundtrip", "project"):
        gradients = []
        for _ in range(3):
            leaf = x.clone().requires_grad_()
            operators[name](leaf)[0].square().sum().backward()
            gradients.append(leaf.grad)
        assert same(gradients[:1], gradients[1:2])
        assert same(gradients[:1], gradients[2:])


@ALL
def test_every_launch_configuration_gives_the_same_bits(sampling, seed, monkeypatch):
    from kernels.triton_ops import KERNELS  # noqa: PLC0415  # where there is a GPU

    x, operators = problem(sampling)
    for name, operator in operators.items():
        if name not in KERNELS:  # project_exact has two kernels, of one configuration each
            continue
        expected = [entry.clone() for entry in operator(x)]
        for choice in range(1, len(KERNELS[name].configurations)):
            monkeypatch.setattr(KERNELS[name], "choice", choice)
            assert same(operator(x), expected), f"{name}: {KERNELS[name].configuration}"
        monkeypatch.undo()


@ALL
def test_autocast_changes_nothing(sampling, seed):
    x, operators = problem(sampling)
    for operator in operators.values():
        expected = [entry.clone() for entry in operator(x)]
        with torch.autocast("cuda", torch.bfloat16):
            found = operator(x)
        assert [entry.dtype for entry in found] == [entry.dtype for entry in expected]
        assert same(found, expected)


@pytest.mark.parametrize("sampling", [Subsampling.S420, Subsampling.S444], ids=lambda sampling: sampling.label)
def test_more_than_2_31_elements(sampling, seed):
    """Of an image that fills such a tensor by repetition, the last copy becomes what it becomes alone."""
    if torch.cuda.mem_get_info()[0] < 40 << 30:
        pytest.skip("needs 40 GiB of free memory")
    side, copies = 2048, 176  # 2.2e9 elements
    x = pictures(1, sampling, (side, side)).clamp(0, 255).cuda()
    tables = tables_of(90, sampling).cuda()
    many, many_tables = x.expand(copies, -1, -1, -1).contiguous(), tables.expand(copies, -1, -1, -1).contiguous()
    assert many.numel() > 1 << 31
    c, one = kernels.encode(many, many_tables, sampling), kernels.encode(x, tables, sampling)
    assert same([plane[-1:] for plane in c.planes], one.planes)
    assert same([kernels.decode(c)[-1:]], [kernels.decode(one)])
    assert same([kernels.roundtrip(many, many_tables, sampling)[-1:]], [kernels.roundtrip(x, tables, sampling)])
    last = Coefficients(tuple(plane.roll(1, 1) for plane in c.planes), c.tables, sampling, c.size)
    other = Coefficients(tuple(plane.roll(1, 1) for plane in one.planes), one.tables, sampling, one.size)
    assert same([kernels.project(many, last)[-1:]], [kernels.project(x, other)])
    del last
    noisy = (kernels.decode(one) + 3 * torch.randn(x.shape).cuda()).clamp(0, 255)  # work for both stages
    many.copy_(noisy.expand_as(many))
    image, mismatches = kernels.project_exact(many, c)
    expected, left = kernels.project_exact(noisy, one)
    assert same([image[-1:], mismatches[-1:]], [expected, left])
    del many, c, image
    torch.cuda.empty_cache()  # other processes test on this GPU
