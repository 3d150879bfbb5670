"""Writes other_networks.npz: what networks of others answer for weights that anyone can make again.

Needs torch and torchvision, which the project itself does not: python make_other_networks.py

amdegroot's SSD300 and lufficc's SSD512 are written out here from their published descriptions,
entry by entry; so is Keras' VGG-16. torchvision's VGG-16 is torchvision's.
"""

import pathlib
import zlib

import numpy as np

PLACE = pathlib.Path(__file__).with_name("other_networks.npz")
CLASSES = 21
ROWS = 128  # of the predictions that are kept
SMALL = 64  # side of the image for VGG-16

# Channels of VGG-16's convolutions; M and C are 2 x 2 pools, C rounds up.
VGG = (
    64, 64, "M", 128, 128, "M", 256, 256, 256, "C", 512, 512, 512, "M", 512, 512, 512,
)  # fmt: skip
# (inputs, outputs, kernel, stride, padding)
EXTRAS = {
    300: (
        (1024, 256, 1, 1, 0), (256, 512, 3, 2, 1), (512, 128, 1, 1, 0), (128, 256, 3, 2, 1),
        (256, 128, 1, 1, 0), (128, 256, 3, 1, 0), (256, 128, 1, 1, 0), (128, 256, 3, 1, 0),
    ),
    512: (
        (1024, 256, 1, 1, 0), (256, 512, 3, 2, 1), (512, 128, 1, 1, 0), (128, 256, 3, 2, 1),
        (256, 128, 1, 1, 0), (128, 256, 3, 2, 1), (256, 128, 1, 1, 0), (128, 256, 3, 2, 1),
        (256, 128, 1, 1, 0), (128, 256, 4, 1, 1),
    ),
}  # fmt: skip
BOXES = {300: (4, 6, 6, 6, 4, 4), 512: (4, 6, 6, 6, 6, 4, 4)}
PARTS = {  # how each names the sequence, the norm, the extra layers and the heads
    "amdegroot": ("vgg", "L2Norm", "extras", "loc", "conf"),
    "lufficc": (
        "backbone.vgg", "backbone.l2_norm", "backbone.extras", "box_head.predictor.reg_headers",
        "box_head.predictor.cls_headers",
    ),
}  # fmt: skip


def weight(name, shape):
    """An entry, float32, from a generator that its name seeds."""
    rng = np.random.default_rng([7, zlib.crc32(name.encode())])
    if len(shape) == 1:
        middle, spread = (20, 1) if "orm" in name else (0, 0.05)
        return rng.normal(middle, spread, shape).astype(np.float32)
    fan_in = np.prod(shape[:-1] if "_W_" in name else shape[1:])
    return (rng.standard_normal(shape) * np.sqrt(2 / fan_in)).astype(np.float32)


def make_image(side):
    """Smooth and not symmetric, `[side, side, 3]` uint8."""
    y, x = np.mgrid[0:side, 0:side] / side * 7
    channels = [127 + 60 * np.sin(a * x + y) + 60 * np.cos(x - a * y) for a in (0.7, 1.1, 1.9)]
    return np.clip(np.stack(channels, -1), 0, 255).astype(np.uint8)


def convolutions():
    """(index in torch's sequence, inputs, outputs) of VGG-16's convolutions."""
    index, inputs = 0, 3
    for item in VGG:
        if isinstance(item, int):
            yield index, inputs, item
            inputs = item
            index += 2
        else:
            index += 1


def ssd_shapes(whose, side):
    """Names and shapes of the state dict of a third-party SSD."""
    backbone, norm, extras, loc, conf = PARTS[whose]
    layers = {f"{backbone}.{n}": (out, inputs, 3, 3) for n, inputs, out in convolutions()}
    layers |= {f"{backbone}.31": (1024, 512, 3, 3), f"{backbone}.33": (1024, 1024, 1, 1)}
    layers |= {f"{extras}.{n}": (o, i, k, k) for n, (i, o, k, _, _) in enumerate(EXTRAS[side])}
    sources = (512, 1024, *(out for _, out, *_ in EXTRAS[side][1::2]))
    for n, (inputs, boxes) in enumerate(zip(sources, BOXES[side], strict=True)):
        layers |= {f"{loc}.{n}": (boxes * 4, inputs, 3, 3)}
        layers |= {f"{conf}.{n}": (boxes * CLASSES, inputs, 3, 3)}
    shapes = {f"{name}.weight": shape for name, shape in layers.items()}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in layers.items()}
    return {**shapes, f"{norm}.weight": (512,)}


def keras_shapes():
    """Names and shapes of Keras' VGG-16 without top; kernels are rows, columns, in, out."""
    shapes, block, layer = {}, 1, 1
    inputs = 3
    for item in VGG:
        if isinstance(item, int):
            name = f"block{block}_conv{layer}"
            shapes[f"{name}/{name}_W_1:0"] = (3, 3, inputs, item)
            shapes[f"{name}/{name}_b_1:0"] = (item,)
            inputs, layer = item, layer + 1
        else:
            block, layer = block + 1, 1
    return shapes


def torchvision_shapes():
    """Names and shapes of torchvision's VGG-16, features only."""
    shapes = {f"features.{n}.weight": (o, i, 3, 3) for n, i, o in convolutions()}
    return shapes | {f"features.{n}.bias": (o,) for n, _, o in convolutions()}


def make(shapes):
    return {name: weight(name, shape) for name, shape in shapes.items()}


def rows(side):
    """Which predictions are kept."""
    count = {300: 8732, 512: 24564}[side]
    return np.random.default_rng(5).choice(count, ROWS, replace=False)


def main():
    import torch
    import torchvision
    from torch.nn import functional

    def tensors(arrays):
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def ssd(whose, side):
        backbone, norm, extras, loc, conf = PARTS[whose]
        state = tensors(make(ssd_shapes(whose, side)))

        def conv(x, name, **options):
            return functional.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], **options)

        x = torch.from_numpy(make_image(side)).float() - torch.tensor([123.0, 117.0, 104.0])
        x = x.permute(2, 0, 1)[None]
        sources, index = [], 0
        for item in VGG:
            if isinstance(item, int):
                x = conv(x, f"{backbone}.{index}", padding=1).relu()
                index += 2
            else:
                x = functional.max_pool2d(x, 2, 2, ceil_mode=item == "C")
                index += 1
            if index == 23:
                length = x.pow(2).sum(dim=1, keepdim=True).sqrt() + 1e-10
                sources.append(state[f"{norm}.weight"][None, :, None, None] * x / length)
        x = functional.max_pool2d(x, 3, 1, 1)
        x = conv(x, f"{backbone}.31", padding=6, dilation=6).relu()
        x = conv(x, f"{backbone}.33").relu()
        sources.append(x)
        for n, (_, _, _, stride, padding) in enumerate(EXTRAS[side]):
            x = conv(x, f"{extras}.{n}", stride=stride, padding=padding).relu()
            if n % 2:
                sources.append(x)
        out = {}
        for kind, values in ((loc, 4), (conf, CLASSES)):
            maps = [conv(s, f"{kind}.{n}", padding=1) for n, s in enumerate(sources)]
            flat = torch.cat([m.permute(0, 2, 3, 1).reshape(-1, values) for m in maps])
            out["loc" if kind == loc else "conf"] = flat[rows(side)].numpy()
        return out

    def keras():
        state = make(keras_shapes())
        bgr = make_image(SMALL)[:, :, ::-1].astype(np.float32)
        x = torch.from_numpy(bgr - np.float32([103.939, 116.779, 123.68])).permute(2, 0, 1)[None]
        kernels, biases = list(state.values())[::2], list(state.values())[1::2]
        layers = zip(kernels, biases, strict=True)
        for item in VGG:
            if isinstance(item, int):
                kernel, bias = next(layers)
                kernel = torch.from_numpy(np.ascontiguousarray(kernel.transpose(3, 2, 0, 1)))
                x = functional.conv2d(x, kernel, torch.from_numpy(bias), padding=1).relu()
            else:
                x = functional.max_pool2d(x, 2, 2)
        return x[0].permute(1, 2, 0).numpy()

    def torchvision_vgg():
        model = torchvision.models.vgg16(weights=None)
        model.load_state_dict(tensors(make(torchvision_shapes())), strict=False)
        x = torch.from_numpy(make_image(SMALL)).permute(2, 0, 1)[None].float() / 255
        mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        x = torchvision.transforms.functional.normalize(x, mean, std)
        return model.features[:30](x)[0].permute(1, 2, 0).numpy()

    with torch.inference_mode():
        outputs = {
            **{f"amdegroot_{kind}": out for kind, out in ssd("amdegroot", 300).items()},
            **{f"lufficc_{kind}": out for kind, out in ssd("lufficc", 512).items()},
            "keras_conv5_3": keras(),
            "torchvision_conv5_3": torchvision_vgg(),
        }
    np.savez_compressed(PLACE, **outputs)
    print({name: (out.shape, float(np.abs(out).max())) for name, out in outputs.items()})


if __name__ == "__main__":
    main()
