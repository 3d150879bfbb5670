"""Writes mobilenet.npz: what torchvision's MobileNetV2 and SSDLite answer for weights made by name.

Needs torch and torchvision, which the project itself does not: python make_mobilenet.py
"""

import itertools
import pathlib
import zlib

import numpy as np

PLACE = pathlib.Path(__file__).with_name("mobilenet.npz")
SIDE = 96
EVERY = 16  # of the maps' channels one is kept, and of the priors one row
MAPS = (20, 10, 5, 3, 2, 1)


def weight(name, shape):
    """An entry of the state dict, float32, from a generator that its name seeds."""
    rng = np.random.default_rng([11, zlib.crc32(name.encode())])
    if len(shape) == 4:
        values = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
    elif name.endswith(("running_var", "weight")):
        values = rng.uniform(0.5, 1.5, shape)
    else:
        values = 0.2 * rng.standard_normal(shape)
    return values.astype(np.float32)


def make_image():
    """Smooth and not symmetric, `[SIDE, SIDE, 3]`, as if normalized."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE * 7
    channels = [np.sin(a * x + y) + np.cos(x - a * y) for a in (0.7, 1.1, 1.9)]
    return np.stack(channels, -1).astype(np.float32)


def main():
    import torch
    import torchvision
    from torchvision.models.detection import anchor_utils, image_list, ssdlite

    backbone = torchvision.models.mobilenet_v2(weights=None).features.eval()
    state = backbone.state_dict()
    made = {name: weight(name, tuple(array.shape)) for name, array in state.items() if array.ndim}
    backbone.load_state_dict({n: torch.from_numpy(a) for n, a in made.items()}, strict=False)
    kept = []
    backbone[14].conv[0].register_forward_hook(lambda module, inputs, output: kept.append(output))

    generator = anchor_utils.DefaultBoxGenerator([[2, 3]] * 6, min_ratio=0.2, max_ratio=0.95)
    images = image_list.ImageList(torch.zeros(1, 3, 320, 320), [(320, 320)])
    with torch.inference_mode():
        kept.append(backbone(torch.from_numpy(make_image()).permute(2, 0, 1)[None]))
        (priors,) = generator(images, [torch.zeros(1, 1, n, n) for n in MAPS])

    def norm(channels):
        return torch.nn.BatchNorm2d(channels)

    channels = (576, 1280, 512, 256, 256, 128)
    extras = [ssdlite._extra_block(a, b, norm) for a, b in itertools.pairwise(channels[1:])]
    head = ssdlite.SSDLiteHead(list(channels), [6] * 6, 91, norm)
    parts = {"backbone": backbone, "extras": torch.nn.ModuleList(extras), "head": head}
    outputs = {
        "expansion": kept[0][0].permute(1, 2, 0)[:, :, ::EVERY].numpy(),
        "last": kept[1][0].permute(1, 2, 0)[:, :, ::EVERY].numpy(),
        "priors_xyxy_pixels": priors[::EVERY].numpy(),
        "parameters": np.array([sum(p.numel() for p in m.parameters()) for m in parts.values()]),
    }
    np.savez_compressed(PLACE, **outputs)
    print({name: (out.shape, float(np.abs(out).max())) for name, out in outputs.items()})


if __name__ == "__main__":
    main()
