"""The critic: its layers are the paper's, and any crop will do."""

import pytest
import torch

from model.critic import Critic, CriticConfig, pool_to_grid

TINY = CriticConfig(features=4, most_features=12, halvings=2)


def critic_of(config=TINY, seed=0):
    torch.manual_seed(seed)
    return Critic(config)


def images(height, width, count=3, seed=0):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def test_the_papers_size():
    """64 features doubled to 1024, two blocks at each of six resolutions, 4x4 places at the end."""
    with torch.device("meta"):
        critic = Critic(CriticConfig())
        assert critic(torch.empty(2, 3, 128, 128)).shape == (2,)
    wanted, features = 3 * 64 * 9 + 64 + 16 * 1024 + 1, 64
    for following in (128, 256, 512, 1024, 1024, 1024):
        wanted += 2 * (features**2 * 9 + features)  # the first block keeps the width
        wanted += features**2 * 9 + features + features * following * 9 + following
        wanted += features * following if following != features else 0
        features = following
    assert sum(p.numel() for p in critic.parameters()) == wanted


@pytest.mark.parametrize("size", [(16, 16), (32, 48), (17, 33), (128, 128), (4, 4)])
def test_one_logit_for_an_image_of_any_size(size):
    logits = critic_of()(images(*size))
    assert logits.shape == (3,)
    assert logits.isfinite().all()


def test_pooling_changes_nothing_at_the_size_it_is_built_for():
    critic, x = critic_of(), images(16, 16)
    seen = []
    critic.last.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    critic.levels[-1].register_forward_hook(lambda _, __, output: seen.append(output))
    critic(x)
    assert torch.equal(torch.nn.functional.leaky_relu(seen[0], 0.2).flatten(1), seen[1])


@pytest.mark.parametrize("size", [(8, 8), (16, 12), (3, 5), (2, 2), (7, 9), (1, 6)])
def test_pooling_is_adaptive_average_pooling(size):
    x = torch.randn(2, 5, *size)
    assert torch.allclose(pool_to_grid(x), torch.nn.functional.adaptive_avg_pool2d(x, 4), atol=1e-6)


def test_an_images_logit_does_not_depend_on_the_others():
    critic, x = critic_of(), images(16, 24)
    with torch.no_grad():
        alone = torch.cat([critic(x[i : i + 1]) for i in range(3)])
        assert torch.allclose(critic(x), alone, atol=1e-6)
        assert float((alone - alone[0]).abs().max()) > 1e-5


def test_gradients_reach_every_parameter_and_the_image():
    critic, x = critic_of(), images(16, 16).requires_grad_()
    critic(x).sum().backward()
    assert [name for name, p in critic.named_parameters() if not p.grad.abs().sum() > 0] == []
    assert (x.grad.abs().amax((1, 2, 3)) > 0).all()


@pytest.mark.parametrize("size", [(16, 16), (24, 40)])
def test_it_can_be_differentiated_twice(size):
    critic, x = critic_of(), images(*size).requires_grad_()
    (gradient,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    gradient.square().sum().backward()
    weights = [p for name, p in critic.named_parameters() if name.endswith("weight")]
    assert all(p.grad is not None and p.grad.any() for p in weights)


def test_it_learns_to_tell_noise_from_smooth_images():
    critic = critic_of()
    optimiser = torch.optim.Adam(critic.parameters(), 2e-3)
    for step in range(40):
        rough = images(16, 16, 8, step)
        smooth = torch.nn.functional.avg_pool2d(rough, 5, 1, 2, count_include_pad=False)
        loss = torch.nn.functional.softplus(critic(rough) - critic(smooth)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.3


def test_other_shapes_and_sizes_of_nothing_are_refused():
    for shape in ((3, 16, 16), (1, 1, 16, 16)):
        with pytest.raises(ValueError, match="N, 3, H, W"):
            critic_of()(torch.zeros(shape))
    for key in ("features", "most_features", "halvings"):
        with pytest.raises(ValueError, match=f"^{key}: expected"):
            CriticConfig(**{key: -1})
