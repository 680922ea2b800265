"""Muon against singular value decompositions and PyTorch's own, and which weights it is given."""

import pytest
import torch
from training import config_of, energy_of, write_photos

from model.generator import Generator, GeneratorConfig
from train.checks import ConfigError
from train.distributed import Ranks
from train.muon import Muon, convolution_weights, orthogonalised
from train.state import new_state
from train.update import Guard, update

RATE = 0.02


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def convolutions(*shapes):
    weights = [torch.nn.Parameter(normal(*shape, seed=n)) for n, shape in enumerate(shapes)]
    return [torch.nn.Parameter(weight.to(memory_format=torch.channels_last)) for weight in weights]


def muon_of(weights):
    muon = Muon([{"params": weights}])
    muon.param_groups[0]["lr"] = RATE
    return muon


def step(muon, seed, failed=0.0):
    for n, weight in enumerate(weight for group in muon.param_groups for weight in group["params"]):
        weight.grad = normal(*weight.shape, seed=100 * seed + n)
        weight.grad[..., 0, :] *= float("nan") if failed else 3.0
    muon.found_inf = torch.tensor(failed)
    muon.step()


@pytest.mark.parametrize("shape", [(3, 8, 20), (2, 20, 8)])
def test_it_replaces_the_singular_values(shape):
    x = normal(*shape)
    u, _, vt = torch.linalg.svd(x.double(), full_matrices=False)
    found = u.mT @ orthogonalised(x).double() @ vt.mT
    values = torch.diagonal(found, dim1=1, dim2=2)
    assert (found - torch.diag_embed(values)).abs().max() < 1e-4
    assert 0.6 < values.min() < values.max() < 1.3


def test_its_steps_are_those_of_pytorch():
    """Which computes in bfloat16: the tolerance is that of its rounding, of three steps."""
    ours = convolutions((8, 4, 3, 3), (8, 4, 3, 3), (48, 4, 3, 3))
    start = [weight.detach().clone() for weight in ours]
    theirs = [torch.nn.Parameter(weight.detach().flatten(1).clone()) for weight in ours]
    reference = torch.optim.Muon(theirs, lr=RATE, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    muon = muon_of(ours)
    for seed in range(3):
        step(muon, seed)
        for mine, other in zip(ours, theirs, strict=True):
            other.grad = mine.grad.flatten(1).clone()
        reference.step()
    for mine, other, before in zip(ours, theirs, start, strict=True):
        moved = (mine - before).flatten(1)
        assert moved.square().mean().sqrt() > RATE * 0.2  # of three steps
        assert (mine.flatten(1) - other).norm() < 0.05 * moved.norm()


def test_a_step_that_failed_changes_nothing():
    one, other = convolutions((8, 4, 3, 3)), convolutions((8, 4, 3, 3))
    sound, failing = muon_of(one), muon_of(other)
    for seed in range(3):
        if seed != 1:
            step(sound, seed)
        step(failing, seed, failed=float(seed == 1))
    assert torch.equal(one[0], other[0])


def test_a_training_step_has_the_rate_of_its_group_and_skips_what_is_not_finite(tmp_path):
    """The update's root mean square is 0.2 times the rate where the momentum has all singular values."""
    optimiser = {"learning_rate": 1e-3, "warmup": 0, "steps": 10, "trunk_rate": 0.3, "muon_rate": 2.0}
    model = {"features": 32, "noise": True}
    config = energy_of(write_photos(tmp_path), tmp_path / "run", model=model, optimiser=optimiser)
    state, guard = new_state(config, Ranks()), Guard(Ranks())
    network = state.generator.network
    for finite in (True, False):
        before = {name: weight.detach().clone() for name, weight in network.named_parameters()}
        for n, weight in enumerate(network.parameters()):
            weight.grad = normal(*weight.shape, seed=n)
        loss = torch.tensor(1.0 if finite else float("nan"))
        update(state.generator, {"loss": loss}, state, config, guard)
        moves = {name: (weight - before[name]).detach() for name, weight in network.named_parameters()}
        if not finite:
            assert all(not move.any() for move in moves.values())
            continue
        chosen = {id(weight) for weight in convolution_weights(network)}
        for name, weight in network.named_parameters():
            size = moves[name].square().mean().sqrt().item()
            wanted = 0.2 * 0.3 * 2e-3 if id(weight) in chosen else 1e-3 if name.startswith("noise_head.") else 0.3e-3
            assert size == pytest.approx(wanted, rel=0.2), name


def test_it_gets_the_trunks_convolutions():
    network = Generator(GeneratorConfig(features=32, blocks=2, noise=True, noise_maps=40))
    names = {id(p): name for name, p in network.named_parameters()}
    chosen = {names[id(weight)] for weight in convolution_weights(network)}
    blocks = {f"{block}.{conv}.weight" for block in ("before.0", "after.0") for conv in ("first", "second")}
    assert chosen == {"head.weight", "tail.weight", *blocks}


def test_a_network_without_such_weights_is_refused(tmp_path):
    model = {"trunk": "rrdb", "features": 8, "growth": 4}
    config = config_of(write_photos(tmp_path), tmp_path / "run", model=model, optimiser={"muon_rate": 2.0})
    with pytest.raises(ConfigError, match=r"optimiser\.muon_rate: expected 0"):
        new_state(config, Ranks())
