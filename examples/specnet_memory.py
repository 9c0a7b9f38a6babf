"""SpecNet's memory against beta: what three blocks save for their backward pass, on photographs.

    python examples/specnet_memory.py              # seconds on two CPU cores; writes specnet_memory.png

A block drops the coefficients below beta, in units of the map's own, and stores the rest packed: a bit for each, and
eight bytes for each that is kept. The line at the top is the same chain with dense spectra; the dotted one is a chain
of torch's convolutions with the same maps, which SpecNet has to beat.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from sklearn.datasets import load_sample_images
from torch import Tensor, nn

import spectralkernels as sk

MIB = 2**20


def photographs(size: int) -> Tensor:
    """Both photographs that scikit-learn brings, [2, 3, size, size], values 0 to 1."""
    images = [torch.tensor(image).permute(2, 0, 1).float() / 255 for image in load_sample_images().images]
    scaled = [nn.functional.interpolate(image.unsqueeze(0), size=(size, size), mode="area") for image in images]
    return torch.cat(scaled)


def saved_bytes(model: nn.Module, x: Tensor) -> int:
    """Bytes of the distinct storages that a forward pass keeps for the backward pass, weights and input included."""
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(x)
    del output
    return sum(held.values())


def chain(width: int, beta: float, impl: str) -> nn.Module:
    """Three blocks from 3 to `width` channels."""
    torch.manual_seed(0)
    channels = (3, width, width, width)
    blocks = [
        sk.nn.SpecBlock(before, after, 3, beta=beta, relative=True, impl=impl) for before, after in pairwise(channels)
    ]
    return nn.Sequential(*blocks)


def convolutions(width: int) -> nn.Module:
    """The same with torch's convolutions and tanh."""
    channels = (3, width, width, width)
    layers = [(nn.Conv2d(a, b, 3, padding=1, bias=False), nn.Tanh()) for a, b in pairwise(channels)]
    return nn.Sequential(*(part for pair in layers for part in pair))


def main(argv: Sequence[str] | None = None) -> dict[float, tuple[int, float]]:
    """Measure every beta, print and draw: (saved bytes, share of coefficients kept at the end)."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--betas", type=float, nargs="+", default=[0.0, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5])
    parser.add_argument("--picture", type=Path, default=Path("specnet_memory.png"))
    arguments = parser.parse_args(argv)

    x = photographs(arguments.size)
    dense = saved_bytes(chain(arguments.width, 0.0, "dense"), x)
    plain = saved_bytes(convolutions(arguments.width), x)
    print(f"dense spectra {dense / MIB:.2f} MiB, torch's convolutions {plain / MIB:.2f} MiB")
    found = {}
    for beta in arguments.betas:
        blocks = chain(arguments.width, beta, "bitmap")
        with torch.no_grad():
            kept = blocks(x).density
        found[beta] = saved_bytes(blocks, x), float(kept)
        print(f"beta {beta:<5g} {found[beta][0] / MIB:6.2f} MiB, {found[beta][1]:6.1%} of the last spectrum kept")
    draw(found, dense, plain, arguments.picture)
    return found


def draw(found: dict[float, tuple[int, float]], dense: int, plain: int, picture: Path) -> None:
    """Saved bytes against beta."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, ax = plt.subplots(figsize=(7.0, 3.6), layout="constrained")
    ax.plot(list(found), [saved / MIB for saved, _ in found.values()], marker="o", label="packed spectra")
    ax.axhline(dense / MIB, color="C1", label="dense spectra")
    ax.axhline(plain / MIB, color="black", linestyle=":", label="torch.nn.Conv2d and tanh")
    ax.set_yscale("log", base=2)
    ax.set_yticks([2.0**power for power in range(-3, 6)], [f"{2.0**power:g}" for power in range(-3, 6)])
    ax.set_xlabel("beta, relative to the root mean square of each map's spectrum")
    ax.set_ylabel("saved for the backward pass (MiB)")
    ax.legend(frameon=False)
    figure.savefig(picture, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
