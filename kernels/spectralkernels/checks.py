"""The one place that words argument errors: what was expected, what came, what to do."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from spectralkernels.errors import DtypeError, RangeError, ShapeError, Unsupported

LARGEST_SIDE = 2**31
"""Of a plane and of what is laid around it; of longer ones no FFT size is found in time, nor memory."""
REAL_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def _names(dtypes: tuple[torch.dtype, ...]) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


def check_module(value: object) -> None:
    if not isinstance(value, torch.nn.Module):
        raise DtypeError(f"model must be a torch.nn.Module, got {kind(value)}")


def check_tensor(name: str, value: object) -> None:
    if isinstance(value, torch.fx.Proxy):
        raise Unsupported(
            f"{name} is a Proxy of torch.fx.symbolic_trace, which has no sizes; use torch.export, or a Tracer whose "
            "is_leaf_module is true for layers of spectralkernels"
        )
    if not isinstance(value, Tensor):
        raise DtypeError(f"{name} must be a tensor, got {kind(value)}")
    if not is_dense(value):
        layout = str(value.layout).removeprefix("torch.").removeprefix("_")
        layout, how = ("quantized", "dequantize()") if value.is_quantized else (layout, "to_dense()")
        layout, how = ("nested", "to_padded_tensor(0.0)") if value.is_nested else (layout, how)
        raise DtypeError(f"{name} must be a dense tensor, got a {layout} one; convert it with {name}.{how}")


def is_dense(value: object) -> bool:
    """Whether it is a tensor with a plain number at every index: neither sparse nor nested nor quantized."""
    if not isinstance(value, Tensor):
        return False
    return value.layout is torch.strided and not value.is_nested and not value.is_quantized


def kind(value: object) -> str:
    """A wrong argument in words: itself where that is short, else its type."""
    written = repr(value) if isinstance(value, (str, Real, type(None))) else ""
    return written if 0 < len(written) <= 40 else type(value).__name__


def as_number(name: str, value: Any) -> float:
    """A number of Python, of numpy or of a tensor without dimensions; DtypeError on anything else."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value if isinstance(value, float) else _in_64_bits(name, value)
    scalar = _is_scalar(value) and not value.is_complex() and value.dtype != torch.bool
    if scalar or (isinstance(value, Real) and not isinstance(value, bool)):
        return float(value)
    raise DtypeError(f"{name} must be a number, got {kind(value)}")


def as_integer(name: str, value: Any) -> int:
    """An integer of Python, of numpy or of a tensor without dimensions; DtypeError on anything else."""
    if isinstance(value, int) and not isinstance(value, bool):
        return _in_64_bits(name, value)
    whole = _is_scalar(value) and value.dtype in _INTEGERS
    if whole or (isinstance(value, Integral) and not isinstance(value, bool)):
        return int(value)
    raise DtypeError(f"{name} must be an integer, got {kind(value)}")


def as_flag(name: str, value: Any) -> bool:
    """True or False, 1 or 0, of Python or of numpy; DtypeError on anything else."""
    if isinstance(value, bool):
        return value
    plain = value.item() if not isinstance(value, Tensor) and getattr(value, "shape", None) == () else value
    if isinstance(plain, int) and plain in (0, 1):
        return bool(plain)
    raise DtypeError(f"{name} must be True or False, got {kind(value)}")


def _in_64_bits(name: str, value: int) -> int:
    if not -(2**63) <= value < 2**63:
        raise RangeError(f"{name} must fit in 64 bits, got {kind(value)}")
    return value


def _is_scalar(value: Any) -> bool:
    return is_dense(value) and value.dim() == 0


_INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8)


def as_integers(name: str, value: Any, counts: tuple[int, ...]) -> tuple[int, ...]:
    """Integers, one per axis, as a tuple; `counts` are the numbers of them that are legal."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise DtypeError(f"{name} must be {_count(counts)} integers, got {kind(value)}")
    if len(value) not in counts:
        raise ShapeError(f"{name} must be {_count(counts)} integers, got {tuple(value)}")
    return tuple(as_integer(f"each of {name}", each) for each in value)


def checked_steps(name: str, steps: Any, axes: int) -> tuple[int, ...]:
    """A stride or dilation per axis: one whole number >= 1, or one for each; RangeError on anything else."""
    if type(steps) is int and steps == 1:
        return (1,) * axes
    given = tuple(steps) if isinstance(steps, list | tuple) else (steps,) * axes
    try:
        found = tuple(as_integer(name, step) for step in given)
    except DtypeError:
        found = ()
    if len(found) != axes or min(found) < 1:
        each = " or two, (vertical, horizontal)" if axes == 2 else ""
        raise RangeError(f"{name} must be one whole number >= 1{each}, got {steps}")
    check_sizes(name, found, steps)
    return found


def check_sizes(name: str, sizes: Sequence[int], given: object, of: str = "") -> None:
    """RangeError where one of them is beyond `LARGEST_SIDE`; given, of: the argument as it was, what is counted."""
    if max(sizes) >= LARGEST_SIDE:
        raise RangeError(f"{name} must be below {LARGEST_SIDE}{of}, got {given}")


def _count(counts: tuple[int, ...]) -> str:
    return " or ".join(map(str, counts))


def check_dims(name: str, tensor: Tensor, dims: str) -> None:
    """`dims` is the layout in words, `[batch, channel, height, width]`; its commas count the dimensions."""
    wanted = dims.count(",") + 1
    if tensor.dim() != wanted:
        raise ShapeError(f"{name} must have {wanted} dimensions {dims}, got shape {list(tensor.shape)}")


def check_dtype(name: str, tensor: Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    if tensor.dtype not in dtypes:
        got = str(tensor.dtype).removeprefix("torch.")
        raise DtypeError(f"{name} must be one of {_names(dtypes)}, got {got}; convert it with {name}.to(...)")


def check_like(name: str, tensor: Tensor, like_name: str, like: Tensor) -> None:
    """Same dtype and device as another argument."""
    if tensor.device != like.device:
        raise DtypeError(
            f"{name} must be on the device of {like_name} ({like.device}), got {tensor.device}; move one of them"
        )
    if tensor.dtype != like.dtype:
        wanted, got = (str(t.dtype).removeprefix("torch.") for t in (like, tensor))
        raise DtypeError(f"{name} must have the dtype of {like_name} ({wanted}), got {got}; convert one of them")


def check_groups(groups: int) -> None:
    if groups < 1:
        raise RangeError(f"groups must be at least 1, got {groups}")


def check_group_sizes(groups: int, channels: int, outputs: int, of_x: str = "", of_weight: str = "") -> None:
    """Channels in and out against the groups that must divide both."""
    check_groups(groups)
    if channels % groups or outputs % groups:
        raise ShapeError(
            f"groups={groups} must divide the {channels} channels{of_x} and the {outputs} output channels{of_weight}"
        )


def check_channels(channels: int, weight: Tensor, groups: int, x_name: str = "x", weight_name: str = "weight") -> None:
    """Channels of the input against a weight [out_channel, in_channel / groups, ...]."""
    check_groups(groups)
    if channels < 1:
        raise ShapeError(f"{x_name} must have at least one channel, got none: a sum over nothing needs no convolution")
    if weight.shape[0] < 1:
        raise ShapeError(f"{weight_name} must have at least one output channel, got shape {list(weight.shape)}")
    check_group_sizes(groups, channels, weight.shape[0], f" of {x_name}", f" of {weight_name}")
    if weight.shape[1] * groups != channels:
        raise ShapeError(
            f"{weight_name} must have {channels // groups} input channels per group "
            f"({channels} channels of {x_name} in groups={groups}), got shape {list(weight.shape)}"
        )


def check_compression(compression: float) -> None:
    compression = as_number("compression", compression)
    if not 0.0 <= compression < 1.0:  # nor is nan
        raise RangeError(
            f"compression must lie in [0, 1), the fraction of coefficients to drop, got {compression}; "
            "a percentage must be divided by 100"
        )


def checked_beta(beta: Any) -> float | Tensor:
    """A threshold as a float; RangeError on what is none. A traced tensor stays one, checked as the graph runs.

    So does one that stands for the samples of a vmap: in float64, each of them checked.
    """
    if is_dense(beta) and beta.numel() == 1 and not beta.is_complex() and beta.dtype != torch.bool:
        if beta.device.type == "meta":
            raise RangeError("beta must be a number >= 0, got a tensor on the meta device, which holds none")
        beta = beta.detach().reshape(())
        if torch.compiler.is_compiling():
            return beta
        if is_batched(beta):
            numbers = samples(beta)
            if numbers.numel() == 0:
                raise RangeError("a vmap over beta needs at least one, got none")
            if not bool((numbers >= 0.0).all()):
                raise RangeError("each beta of a vmap must be >= 0; 0 keeps every coefficient that is not zero")
            return beta.double()
    try:
        value = as_number("beta", beta)
    except DtypeError as error:
        raise RangeError(_no_beta(beta)) from error
    if torch.compiler.is_compiling():  # a number without digits, or one that is not known before the graph runs
        # and for the message to be a constant of the graph, it cannot say which
        torch._check(value >= 0.0, lambda: "beta must be a number >= 0, got a negative one; 0 keeps every coefficient")
    elif not value >= 0.0:
        raise RangeError(_no_beta(value))
    return value if isinstance(value, float) else float(value)  # a traced number stays one


def is_batched(value: object) -> bool:
    """Whether it stands for the samples of a `torch.func.vmap`, at any depth of transforms; not known while tracing."""
    if torch.compiler.is_compiling():
        return False
    while isinstance(value, Tensor) and _functorch.is_functorch_wrapped_tensor(value):
        if _functorch.is_batchedtensor(value):
            return True
        value = _functorch.get_unwrapped(value)
    return False


def samples(tensor: Tensor) -> Tensor:
    """The numbers that a tensor within transforms of torch.func stands for: the axes of its vmaps, then its own."""
    order = list(range(tensor.dim()))
    while _functorch.is_functorch_wrapped_tensor(tensor):
        if _functorch.is_batchedtensor(tensor):
            order.insert(_functorch.maybe_get_bdim(tensor), -len(order) - 1)
        tensor = _functorch.get_unwrapped(tensor)
    axes = sorted(range(len(order)), key=order.__getitem__)
    return tensor if axes == list(range(len(axes))) else tensor.permute(axes)


_functorch = torch._C._functorch


def _no_beta(beta: Any) -> str:
    return f"beta must be a number >= 0, got {kind(beta)}; 0 keeps every coefficient that is not zero"


def check_choice(name: str, value: object, known: Sequence[str]) -> None:
    if not isinstance(value, str) or value not in known:
        words = " or ".join(", ".join(map(repr, some)) for some in (known[:-1], known[-1:]))
        raise RangeError(f"{name} must be {words}, got {kind(value)}")


def check_bias(bias: Tensor | None, weight_channels: int, x: Tensor) -> None:
    if bias is None:
        return
    check_tensor("bias", bias)
    if list(bias.shape) != [weight_channels]:
        raise ShapeError(
            f"bias must have shape [{weight_channels}], one value per output channel, got {list(bias.shape)}"
        )
    check_like("bias", bias, "x", x)
