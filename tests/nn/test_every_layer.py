"""What a user of torch.nn expects of every layer of sk.nn, found by walking: a new one is asked once it is there."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import spectralkernels as sk
from spectralkernels.operators import NAMESPACE, OPERATORS


class Dense(nn.Module):
    """A block with its spectrum unpacked, because only tensors are compared and exported."""

    def __init__(self) -> None:
        super().__init__()
        self.block = sk.nn.SpecBlock(4, 6, 3, beta=0.1, capacity=1.0)

    def forward(self, x: Tensor) -> Tensor:
        return torch.view_as_real(self.block(x).to_dense())


def disc(n: tuple[int, int]) -> Tensor:
    return sk.masks.radial(n, 0.5)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "BandLimitedConv1d": lambda: sk.nn.BandLimitedConv1d(4, 6, 3, padding=1, stride=2, compression=0.5),
    "BandLimitedConv2d": lambda: sk.nn.BandLimitedConv2d(4, 6, 3, padding=1, compression=0.5),
    "BitReLU": sk.nn.BitReLU,
    "DiffStride2d": lambda: sk.nn.DiffStride2d((1.6, 2.3), smoothness=2.0, cropping=False),
    "FrequencyDropout2d": lambda: sk.nn.FrequencyDropout2d(0.2),
    "MaskedConv2d": lambda: sk.nn.MaskedConv2d(4, 6, 3, padding=1, stride=2, mask=disc),
    "PHConv2d": lambda: sk.nn.PHConv2d(4, 6, 3, n=2, padding=1),
    "SpecBlock": Dense,
    "SpectralConv2d": lambda: sk.nn.SpectralConv2d(4, 6, 3, padding=1),
    "SpectralPool2d": lambda: sk.nn.SpectralPool2d(1.5, dropout=0.3),
}
each = pytest.mark.parametrize("name", LAYERS)


def maps(name: str, **options: Any) -> Tensor:
    return torch.randn(2, 4, 9, 8, **options) if "1d" not in name else torch.randn(2, 4, 9, **options)


def drawn(layer: nn.Module, x: Tensor, seed: int) -> Tensor:
    """The answer with the draws of one seed."""
    torch.manual_seed(seed)
    found: Tensor = layer(x)
    return found


def test_no_layer_is_left_out():
    public = [getattr(sk.nn, name) for name in dir(sk.nn)]
    layers = {found.__name__ for found in public if isinstance(found, type) and issubclass(found, nn.Module)}
    assert layers == set(LAYERS)


@each
def test_copies_threads_and_casts(name: str, seed: int):
    layer, x = LAYERS[name](), maps(name)
    want = drawn(layer, x, seed)
    fresh = LAYERS[name]()
    fresh.load_state_dict(layer.state_dict())
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), fresh):
        torch.testing.assert_close(drawn(other, x, seed), want)
    if x.dim() == 4:
        torch.testing.assert_close(drawn(layer, x.to(memory_format=torch.channels_last), seed), want)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(drawn(layer, x, seed).float(), want, rtol=0.1, atol=0.1)
    layer.eval()
    want, found = layer(x).detach(), [torch.empty(0)] * 3

    def work(i: int) -> None:
        """As torch.nn.DataParallel calls its replicas."""
        for _ in range(3):
            found[i] = layer(x).detach()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one in found:
        torch.testing.assert_close(one, want)


@each
def test_gradients(name: str, seed: int):
    layer = LAYERS[name]().double()
    x = maps(name, dtype=torch.float64)[:1].requires_grad_()
    names = [which for which, _ in layer.named_parameters()]

    def call(x: Tensor, *values: Tensor) -> Tensor:
        torch.manual_seed(seed)
        answer: Tensor = torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))
        return answer

    assert torch.autograd.gradcheck(call, (x, *layer.parameters()), fast_mode=True, atol=1e-4)


@each
def test_what_a_layer_keeps_belongs_to_no_mode(name: str, seed: int):
    layer, x = LAYERS[name]().eval().requires_grad_(False), maps(name)
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        layer(fake.from_tensor(x))
    with torch.inference_mode():
        want = layer(x).clone()
    weights = {name: torch.stack([value, value]) for name, value in layer.named_parameters()}
    if weights:  # an ensemble
        with torch.no_grad():
            both = torch.vmap(lambda values: torch.func.functional_call(layer, values, (x,)))(weights)
        torch.testing.assert_close(both, torch.stack([want, want]))
    x.requires_grad_()
    y = layer(x)
    torch.testing.assert_close(y.detach(), want)
    y.sum().backward()
    assert type(y) is Tensor and type(x.grad) is Tensor


@each
def test_torch_may_swap_the_parameters_of_a_layer_in_use(name: str, monkeypatch: pytest.MonkeyPatch, seed: int):
    monkeypatch.setattr(torch.__future__, "_swap_module_params_on_conversion", True)
    layer, other, x = LAYERS[name]().eval(), LAYERS[name]().eval(), maps(name)
    with torch.no_grad():
        layer(x)
        layer.load_state_dict(other.state_dict())
        torch.testing.assert_close(layer(x), other(x))
        torch.testing.assert_close(layer.double()(x.double()), other.double()(x.double()))


class Reads(TorchDispatchMode):
    """Counts what waits for the device to give the host a number."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.called: list[str] = []
        self._numbers: set[int] = set()
        # On a CPU a list is made without an operator.
        for name in ("tolist",):
            original = getattr(Tensor, name)
            monkeypatch.setattr(Tensor, name, lambda t, *a, n=name, o=original: self.called.append(n) or o(t, *a))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == NAMESPACE:  # an operator of ours is Python: watch what it calls
            # A threshold travels as a tensor of one number, which lies on the host.
            self._numbers |= {each.data_ptr() for each in args if isinstance(each, Tensor) and each.dim() == 0}
            with self:
                return OPERATORS[func.name().partition("::")[2]].compute(*args, **(kwargs or {}))
        if func.name() in ("aten::_local_scalar_dense", "aten::item", "aten::nonzero", "aten::is_nonzero"):
            if args[0].dim() or args[0].data_ptr() not in self._numbers:
                self.called.append(func.name())
        return func(*args, **(kwargs or {}))


@each
def test_a_step_reads_nothing_on_the_host(name: str, seed: int, monkeypatch: pytest.MonkeyPatch):
    """`.item()` and its kin, in the second of two steps."""
    layer, x = LAYERS[name](), maps(name, requires_grad=True)
    layer(x).square().sum().backward()
    with Reads(monkeypatch) as reads:
        layer(x).square().sum().backward()
    assert not reads.called


@pytest.mark.parametrize(
    ("call", "what"),
    [
        (lambda x: sk.nn.DiffStride2d(2.0, smoothness=2.0)(x), "tolist"),  # sizes follow strides, as documented
        (lambda x: sk.nn.SpecBlock(1, 1, 3, beta=0.1)(x), "aten::item"),  # exact room for what is kept, likewise
        (lambda x: float(x.mean()), "aten::_local_scalar_dense"),
        (lambda x: x.nonzero(), "aten::nonzero"),
        (lambda x: bool((x > 0).all()), "aten::_local_scalar_dense"),
    ],
)
def test_the_watch_sees_what_reads(call: Callable[[Tensor], object], what: str, monkeypatch: pytest.MonkeyPatch):
    with Reads(monkeypatch) as reads:
        call(torch.randn(1, 1, 8, 8))
    assert what in reads.called


@pytest.mark.slow
@each
def test_it_compiles_whole_and_is_exported(name: str, seed: int):
    layer, x = LAYERS[name]().eval(), maps(name)
    want = layer(x)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), want)
    with torch.no_grad():
        torch.testing.assert_close(torch.export.export(layer, (x,)).module()(x), want)
