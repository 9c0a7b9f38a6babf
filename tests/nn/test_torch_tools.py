"""Layers under the tools that PyTorch has for whole models: what holds for a twin of torch's holds for ours."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import spectralkernels as sk


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = (nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 5, padding=2, groups=2), nn.Flatten())
    model = nn.Sequential(*layers, nn.Linear(6 * 9 * 8, 4))
    sk.nn.convert(model, compression=0.3)
    return model.double().eval()


@pytest.fixture
def x(seed: int) -> Tensor:
    return torch.randn(2, 3, 9, 8, dtype=torch.float64)


def gradients(model: nn.Module, call: Callable[[], Tensor]) -> list[Tensor]:
    model.zero_grad()
    call().square().sum().backward()
    return [each.grad.clone() for each in model.parameters() if each.grad is not None]


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints(reentrant: bool, x: Tensor, seed: int):
    model, x = network(seed), x.requires_grad_()
    wanted = gradients(model, lambda: model(x))
    found = gradients(model, lambda: torch.utils.checkpoint.checkpoint_sequential(model, 2, x, use_reentrant=reentrant))
    torch.testing.assert_close(found, wanted)


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_saved_on_the_cpu(x: Tensor, seed: int):
    model = network(seed)
    wanted = gradients(model, lambda: model(x))
    with torch.autograd.graph.save_on_cpu(), torch.autograd.detect_anomaly(check_nan=True):
        torch.testing.assert_close(gradients(model, lambda: model(x)), wanted)


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: prune.l1_unstructured(layer, "weight", 0.9),
        lambda layer: parametrizations.weight_norm(layer).parametrizations.weight.original0.data.mul_(3.0),
        parametrizations.orthogonal,
    ],
    ids=["pruned", "weight_norm", "orthogonal"],
)
def test_a_weight_that_is_made_anew_after_its_spectrum_was_kept(change: Callable[..., object], x: Tensor, seed: int):
    model, plain = network(seed), network(seed)
    with torch.no_grad():
        before = model(x), model(x)  # its spectrum is kept from here on
        change(model[2])
        found, again = model(x), model(x)
        plain[2].weight.copy_(model[2].weight)
        torch.testing.assert_close(found, plain(x))
    assert torch.equal(found, again) and not torch.allclose(found, before[0])
    assert len(gradients(model, lambda: model(x))) >= 6


def test_averaged_models_follow_their_average(x: Tensor, seed: int):
    model = network(seed)
    averaged = torch.optim.swa_utils.AveragedModel(model)
    averaged.update_parameters(model)
    with torch.no_grad():
        averaged(x)
        for each in model.parameters():
            each.add_(0.5)
        averaged.update_parameters(model)
        plain = network(seed)
        plain.load_state_dict(averaged.module.state_dict())
        torch.testing.assert_close(averaged(x), plain(x))


def test_ensembles_and_gradients_per_sample(x: Tensor, seed: int):
    models = [network(seed), network(seed + 1)]
    parameters, buffers = torch.func.stack_module_state(models)
    call = lambda p, b, x: torch.func.functional_call(models[0], (p, b), (x,))  # noqa: E731
    found = torch.func.vmap(call, in_dims=(0, 0, None))(parameters, buffers, x)
    torch.testing.assert_close(found, torch.stack([model(x) for model in models]))

    own = dict(models[0].named_parameters())
    loss = lambda p, x: torch.func.functional_call(models[0], p, (x[None],)).square().sum()  # noqa: E731
    per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(own, x)
    summed = [per_sample[name].sum(0) for name in own]
    torch.testing.assert_close(summed, gradients(models[0], lambda: models[0](x)))


def test_symbolic_traces_need_our_layers_as_leaves(x: Tensor, seed: int):
    class Tracer(torch.fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            ours = type(m).__module__.startswith("spectralkernels.")
            return ours or super().is_leaf_module(m, module_qualified_name)

    model = network(seed)
    with pytest.raises(sk.Unsupported, match=r"x is a Proxy of torch\.fx\.symbolic_trace.*is_leaf_module"):
        torch.fx.symbolic_trace(model)
    assert torch.equal(torch.fx.GraphModule(model, Tracer().trace(model))(x), model(x))
