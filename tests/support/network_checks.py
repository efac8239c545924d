"""What every network must do, whatever it computes: checks that the tests of each one call.

A `run` maps images [n, c, h, w] to the network's output, [n, ...].
"""

import copy

import numpy as np
import torch
from torch import nn


def images(n, shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).uniform(size=(n, *shape))).float()


def trained(network, seed=0):
    """The network in eval mode, no weight or statistic of it at its initial value."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in network.state_dict().items():
        if name.endswith("running_var"):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
        elif tensor.ndim == 1:
            tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.4 + 0.1)
        elif tensor.is_floating_point():
            spread = tensor[0].numel() ** -0.5
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * spread)
    return network.eval()


def parameters(network):
    return sum(p.numel() for p in network.parameters())


def check_rows_apart(run, x):
    """Row i of the output depends on row i of the input, and on no other."""
    with torch.inference_mode():
        together = run(x)
        for i in range(len(x)):
            torch.testing.assert_close(run(x[i : i + 1]), together[i : i + 1], rtol=1e-5, atol=1e-5)
        changed = x.clone()
        changed[0] = 1.0 - changed[0]
        after = run(changed)
    assert torch.equal(after[1:], together[1:])
    assert not torch.equal(after[0], together[0])


def check_gradients(network, run, x):
    """They reach every pixel's image and every weight, and are finite."""
    x = x.clone().requires_grad_()
    run(x).square().sum().backward()
    for name, tensor in (("x", x), *network.named_parameters()):
        assert tensor.grad is not None, name
        assert torch.isfinite(tensor.grad).all(), name
        assert tensor.grad.abs().max() > 0, name
    assert (x.grad.flatten(1).abs().amax(1) > 0).all()


def check_double(network, make_run, x):
    """In float64 it computes the same, and its gradient is that of finite differences.

    `make_run` makes the `run` of a network.
    """
    exact = copy.deepcopy(network).double()
    assert isinstance(exact, nn.Module)
    run = make_run(exact)
    with torch.no_grad():
        y, single = run(x.double()), make_run(network)(x)
    assert y.dtype == torch.float64
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), y, rtol=1e-3, atol=1e-4)
    exact.requires_grad_(False)
    assert torch.autograd.gradcheck(run, x[:1].double().requires_grad_(), fast_mode=True)
