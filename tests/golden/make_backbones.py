"""Writes backbones.npz: what torchvision's networks answer for weights made by name.

VGG-19 and ResNets to the maps that SSD reads, and the whole of ssdlite320_mobilenet_v3_large.

Needs torch and torchvision, which the project itself does not: python make_backbones.py
"""

import pathlib
import zlib

import numpy as np

PLACE = pathlib.Path(__file__).with_name("backbones.npz")
CLASSES = 21
SIDE = 64  # of the image for a backbone alone
EVERY = 16  # channels of which one is kept
ROWS = 128  # of the predictions that are kept
HEIGHT, WIDTH = 200, 300  # of the image for the detector
# Convolutions of VGG-19 whose ReLU's outputs are kept, in torchvision's sequence.
VGG19 = {"conv4_4": 25, "conv5_4": 34}


def weight(name, shape):
    """An entry of the state dict, float32, from a generator that its name seeds.

    The depth of a ResNet does not make its numbers grow: the blocks' last scales are small.
    """
    rng = np.random.default_rng([11, zlib.crc32(name.encode())])
    if len(shape) == 4:
        values = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
    elif name.endswith(("running_var", "weight")):
        values = rng.uniform(0.5, 1.5, shape)
    else:
        values = 0.2 * rng.standard_normal(shape)
    small = name.startswith("layer") and name.endswith(("bn3.weight", "bn2.weight"))
    return (values / 4 if small else values).astype(np.float32)


def make_image(height, width):
    """Smooth and not symmetric, `[height, width, 3]` uint8."""
    y, x = np.mgrid[0:height, 0:width] / height * 7
    channels = [127 + 60 * np.sin(a * x + y) + 60 * np.cos(x - a * y) for a in (0.7, 1.1, 1.9)]
    return np.clip(np.stack(channels, -1), 0, 255).astype(np.uint8)


def rows():
    """Which predictions are kept."""
    return np.random.default_rng(5).choice(3234, ROWS, replace=False)


def main():
    import torch
    import torchvision

    def fill(model):
        state = model.state_dict()
        made = {name: weight(name, tuple(a.shape)) for name, a in state.items() if a.ndim}
        model.load_state_dict({n: torch.from_numpy(a) for n, a in made.items()}, strict=False)
        return model.eval()

    def normalized():
        x = torch.from_numpy(make_image(SIDE, SIDE)).permute(2, 0, 1)[None].float() / 255
        mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        return torchvision.transforms.functional.normalize(x, mean, std)

    def kept(x):
        return x[0, ::EVERY].permute(1, 2, 0).numpy()

    def resnet(depth):
        """With stride 1 in the third stage, as NVIDIA's SSD has it."""
        model = fill(getattr(torchvision.models, f"resnet{depth}")(weights=None))
        first = model.layer3[0]
        strided = (first.conv1, first.conv2, first.downsample[0])
        for conv in strided:
            conv.stride = (1, 1)
        x = model.maxpool(model.relu(model.bn1(model.conv1(normalized()))))
        return kept(model.layer3(model.layer2(model.layer1(x))))

    def vgg19():
        features = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["E"])
        model = fill(torch.nn.ModuleDict({"features": features}))
        return {
            name: kept(model["features"][: index + 2](normalized()))
            for name, index in VGG19.items()
        }

    def ssdlite():
        model = fill(
            torchvision.models.detection.ssdlite320_mobilenet_v3_large(
                weights=None, weights_backbone=None, num_classes=CLASSES
            )
        )
        found = {}
        model.backbone.register_forward_hook(
            lambda module, inputs, maps: found.update(first=kept(maps["0"]), last=kept(maps["1"]))
        )
        model.head.register_forward_hook(
            lambda module, inputs, out: found.update(
                loc=out["bbox_regression"][0, rows()].numpy(),
                conf=out["cls_logits"][0, rows()].numpy(),
            )
        )
        x = torch.from_numpy(make_image(HEIGHT, WIDTH)).permute(2, 0, 1).float() / 255
        (detections,) = model([x])
        found |= {kind: values.numpy() for kind, values in detections.items()}
        return {f"ssdlite_{kind}": values for kind, values in found.items()}

    with torch.inference_mode():
        outputs = {
            **{f"vgg19_{name}": out for name, out in vgg19().items()},
            **{f"resnet{depth}": resnet(depth) for depth in (18, 34, 50, 101)},
            **ssdlite(),
        }
    np.savez_compressed(PLACE, **outputs)
    print({name: (out.shape, float(np.abs(out).max())) for name, out in outputs.items()})


if __name__ == "__main__":
    main()
