"""Model of training on many devices: time of a step, and its bottleneck.

  python benchmarks/scaling.py [--share 0.226] [--batch 32] [--loader 1350]

A step takes as long as the slower of the devices and the loader of their host. The devices compute,
and then add up their gradients; that the two overlap is not counted on. Peaks and links are their
makers' figures. `--share` of the peak is what NVIDIA's SSD300 with ResNet-50 reaches on one A100 by
its published 724 images/s, and the first table tells what the model then says of eight.
"""

import argparse
import math
from typing import NamedTuple

from ssd_jax.models import ssd, summary

VOC_IMAGES = 120_000 * 32  # images of a training: those of configs/ssd300.py
COCO_IMAGES = 400_000 * 32  # and of configs/ssd300_coco.py
BACKWARD = 2  # so many times the operations of the forward pass


class Machine(NamedTuple):
    """A kind of device and how it is linked.

    Attributes:
      name: Its maker's.
      peak: Operations a second of its matrix units, in bfloat16.
      devices: Of one host.
      inside: Bytes a second into a device from the others of its host.
      between: Bytes a second into a device from other hosts.
      cores: Of the host, for each device; they decode.
    """

    name: str
    peak: float
    devices: int
    inside: float
    between: float
    cores: int


A100 = Machine("A100", 312e12, 8, 300e9, 25e9, 16)  # NVLink 3; a 200 Gb/s adapter for each
H100 = Machine("H100", 989e12, 8, 450e9, 50e9, 14)  # NVLink 4; 400 Gb/s
TPU_V3 = Machine("TPU v3 chip", 123e12, 4, 70e9, 70e9, 24)  # a torus, within a pod as on a host
LATENCY = 10e-6  # seconds of each stage of an all-reduce: assumed


class Network(NamedTuple):
    """Cost of a network: operations per training image, bytes of its gradients."""

    operations: float
    gradients: float


def network(backbone: str) -> Network:
    """That of SSD300 with 20 classes, counted layer by layer; gradients are float32."""
    layers = summary.summarize(ssd.SSD(num_classes=21, backbone=backbone), (300, 300))
    forward = sum(layer.flops for layer in layers)
    return Network((1 + BACKWARD) * forward, 4.0 * sum(layer.parameters for layer in layers))


def compute(net: Network, machine: Machine, batch: int, share: float) -> float:
    """Seconds that a device takes for its images."""
    return batch * net.operations / (share * machine.peak)


def all_reduce(net: Network, machine: Machine, devices: int) -> float:
    """Seconds to add up gradients: scattered in each host, then summed between them, and back.

    A ring of n moves 2 (n - 1) / n times what it sums.
    """
    inside = min(devices, machine.devices)
    hosts = math.ceil(devices / machine.devices)
    within = 2 * (inside - 1) / inside * net.gradients / machine.inside
    between = 2 * (hosts - 1) / hosts * net.gradients / inside / machine.between
    return within + between + LATENCY * 2 * math.ceil(math.log2(devices) if devices > 1 else 0)


def images_a_second(
    net: Network, machine: Machine, devices: int, *, batch: int, share: float, loader: float
) -> tuple[float, str, float]:
    """Of all devices together; what limits it, and the all-reduce's share of the devices' step.

    Args:
      net: The network.
      machine: The device.
      devices: How many.
      batch: Images of each device.
      share: Of its peak.
      loader: Images a second that one core decodes.
    """
    alone, together = compute(net, machine, batch, share), all_reduce(net, machine, devices)
    stepped = devices * batch / (alone + together)
    fed = devices * machine.cores * loader
    limit = "loader" if fed < stepped else "all-reduce" if together > alone else "compute"
    return min(stepped, fed), limit, together / (alone + together)


def _time(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--share", type=float, default=0.226)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--loader", type=float, default=1350.0)
    options = vars(parser.parse_args())
    resnet = network("resnet50")
    one, eight = (
        images_a_second(resnet, A100, count, **{**options, "batch": 128})[0] for count in (1, 8)
    )
    print(f"SSD300 with ResNet-50 on A100, 128 images each: 1: {one:.0f}, 8: {eight:.0f}\n")
    print("| SSD300, VGG-16 on | devices | images/s | VOC07+12 | COCO | all-reduce | limit |")
    print("|---|---|---|---|---|---|---|")
    vgg = network("vgg16")
    for machine in (A100, H100, TPU_V3):
        for count in (1, 8, 64, 512):
            speed, limit, waits = images_a_second(vgg, machine, count, **options)
            taken = " | ".join(_time(images / speed) for images in (VOC_IMAGES, COCO_IMAGES))
            print(
                f"| {machine.name} | {count} | {speed:,.0f} | {taken} | {100 * waits:.1f} % | "
                f"{limit} |"
            )


if __name__ == "__main__":
    main()
