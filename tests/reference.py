"""SSD's pure functions once more, written from the paper: plain NumPy, slow, one thing at a time.

Everything is float64 and loops; nothing here imports the package. Boxes are corners unless a name
ends in `_cxcywh`. Liu et al. 2016, arXiv:1512.02325v5.
"""

import math

import numpy as np


def corners(box_cxcywh):
    cx, cy, w, h = (float(value) for value in box_cxcywh)
    return cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2


def iou(a, b):
    """Overlap of two boxes; 0 where both have no area."""
    ax0, ay0, ax1, ay1 = (float(value) for value in a)
    bx0, by0, bx1, by1 = (float(value) for value in b)
    width = max(min(ax1, bx1) - max(ax0, bx0), 0.0)
    height = max(min(ay1, by1) - max(ay0, by0), 0.0)
    intersection = width * height
    area_a = max(ax1 - ax0, 0.0) * max(ay1 - ay0, 0.0)
    area_b = max(bx1 - bx0, 0.0) * max(by1 - by0, 0.0)
    union = area_a + area_b - intersection
    return intersection / union if union > 0 else 0.0


def encode(box, prior_cxcywh, variances=(0.1, 0.2)):
    """Equation 2, divided by the variances of the authors' release."""
    x0, y0, x1, y1 = (float(value) for value in box)
    px, py, pw, ph = (float(value) for value in prior_cxcywh)
    return np.array(
        [
            ((x0 + x1) / 2 - px) / pw / variances[0],
            ((y0 + y1) / 2 - py) / ph / variances[0],
            math.log((x1 - x0) / pw) / variances[1],
            math.log((y1 - y0) / ph) / variances[1],
        ]
    )


def decode(loc, prior_cxcywh, variances=(0.1, 0.2)):
    """Equation 2 solved for the box."""
    dx, dy, dw, dh = (float(value) for value in loc)
    px, py, pw, ph = (float(value) for value in prior_cxcywh)
    cx, cy = px + dx * variances[0] * pw, py + dy * variances[0] * ph
    w, h = pw * math.exp(dw * variances[1]), ph * math.exp(dh * variances[1])
    return np.array([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2])


def default_boxes(side, maps, steps, sizes, ratios):
    """Section 2.2, "Choosing scales and aspect ratios", for a square input.

    `sizes` has one entry more than there are maps: the large square of a map is the geometric mean
    of its size and the next map's. `ratios` lists for each map the aspect ratios above 1.
    """
    rows = []
    for level, (cells, step) in enumerate(zip(maps, steps, strict=True)):
        small, following = sizes[level], sizes[level + 1]
        shapes = [(small, small), (math.sqrt(small * following),) * 2]
        for ratio in ratios[level]:
            shapes.append((small * math.sqrt(ratio), small / math.sqrt(ratio)))
            shapes.append((small / math.sqrt(ratio), small * math.sqrt(ratio)))
        for i in range(cells):
            for j in range(cells):
                for w, h in shapes:
                    cx, cy = (j + 0.5) * step, (i + 0.5) * step
                    rows.append((cx / side, cy / side, w / side, h / side))
    return np.array(rows)


def match(gt_boxes, gt_labels, priors_cxcywh, iou_threshold=0.5):
    """Index of the ground truth of each prior, -1 for background. Section 2.2, "Matching strategy".

    Stage one goes through all pairs with an overlap from the largest IoU down (ties: lowest prior,
    then lowest ground truth) and joins the two where both are free. Stage two gives each prior
    still free its best ground truth (ties: the lowest) if that IoU reaches the threshold.
    """
    priors = [corners(prior) for prior in priors_cxcywh]
    real = [g for g in range(len(gt_boxes)) if gt_labels[g] > 0]
    overlaps = {(g, p): iou(gt_boxes[g], prior) for g in real for p, prior in enumerate(priors)}
    matched = np.full(len(priors), -1)
    served = set()
    pairs = [(-overlap, p, g) for (g, p), overlap in overlaps.items() if overlap > 1e-6]
    for _, p, g in sorted(pairs):
        if g not in served and matched[p] < 0:
            matched[p] = g
            served.add(g)
    for p in np.flatnonzero(matched < 0):
        best = max(real, key=lambda g: (overlaps[g, p], -g), default=None)
        if best is not None and overlaps[best, p] >= iou_threshold:
            matched[p] = best
    return matched


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def hard_negative_mask(background_loss, positive, neg_pos_ratio=3):
    """The `ratio * positives` priors of highest loss that are no positives; ties: lowest index."""
    negatives = [p for p in range(len(positive)) if not positive[p]]
    ranked = sorted(negatives, key=lambda p: (-float(background_loss[p]), p))
    mask = np.zeros(len(positive), bool)
    mask[ranked[: math.floor(neg_pos_ratio * int(np.sum(positive)))]] = True
    return mask


def multibox_loss(loc, conf, loc_targets, labels, neg_pos_ratio=3, loc_weight=1.0):
    """Equations 1 to 3 over a batch: (loss, localization part, confidence part)."""
    loc_sum = conf_sum = 0.0
    positives = 0
    for image in range(len(labels)):
        positive = labels[image] > 0
        log_probs = log_softmax(conf[image])
        negative = hard_negative_mask(-log_probs[:, 0], positive, neg_pos_ratio)
        for p in np.flatnonzero(positive):
            conf_sum -= log_probs[p, labels[image][p]]
            for got, wanted in zip(loc[image][p], loc_targets[image][p], strict=True):
                error = abs(float(got) - float(wanted))
                loc_sum += 0.5 * error**2 if error < 1 else error - 0.5
        for p in np.flatnonzero(negative):
            conf_sum -= log_probs[p, 0]
        positives += int(positive.sum())
    count = max(positives, 1)
    return (conf_sum + loc_weight * loc_sum) / count, loc_sum / count, conf_sum / count


def nms(boxes, scores, iou_threshold=0.45, max_outputs=None):
    """Indices of the kept boxes, best first (ties: lowest index); scores of 0 take no part."""
    kept = []
    for index in sorted(range(len(scores)), key=lambda n: (-float(scores[n]), n)):
        if scores[index] <= 0 or len(kept) == max_outputs:
            break
        if all(iou(boxes[index], boxes[other]) <= iou_threshold for other in kept):
            kept.append(index)
    return kept


def mirror(box):
    """Left and right change places."""
    x0, y0, x1, y1 = box
    return 1 - x1, y0, 1 - x0, y1


def detect(loc, conf, priors_cxcywh, **limits):
    """List of (box, score, label), best first (ties: lowest class). Section 3.1's inference."""
    return detect_views([(loc, conf, priors_cxcywh, False)], **limits)


def detect_views(views, score_threshold=0.01, iou_threshold=0.45, top_k=400, max_detections=200):
    """`detect` over several views (loc, conf, priors, mirrored): joined, then NMS."""
    offsets = [
        (row, prior, mirrored)
        for loc, _, priors_cxcywh, mirrored in views
        for row, prior in zip(loc, priors_cxcywh, strict=True)
    ]
    probabilities = np.exp(log_softmax(np.concatenate([conf for _, conf, _, _ in views])))
    found = []
    for label in range(1, probabilities.shape[1]):
        scores = probabilities[:, label]
        above = [n for n in range(len(offsets)) if scores[n] > score_threshold]
        best = sorted(above, key=lambda n: (-scores[n], n))[:top_k]
        boxes = []
        for row, prior, mirrored in (offsets[n] for n in best):
            box = decode(row, prior)
            boxes.append(mirror(box) if mirrored else box)
        kept = nms(boxes, [scores[n] for n in best], iou_threshold)
        found += [(boxes[n], scores[best[n]], label) for n in kept]
    found.sort(key=lambda row: -row[1])
    return [(np.clip(box, 0, 1), score, label) for box, score, label in found[:max_detections]]


def resize(image, height, width):
    """Bilinear, pixel centers at halves, the border repeats, no antialiasing."""
    rows, columns = image.shape[:2]
    result = np.empty((height, width, image.shape[2]))
    for i in range(height):
        y = min(max((i + 0.5) * rows / height - 0.5, 0), rows - 1)
        top = math.floor(y)
        bottom = min(top + 1, rows - 1)
        for j in range(width):
            x = min(max((j + 0.5) * columns / width - 0.5, 0), columns - 1)
            left = math.floor(x)
            right = min(left + 1, columns - 1)
            upper = image[top, left] * (1 - (x - left)) + image[top, right] * (x - left)
            lower = image[bottom, left] * (1 - (x - left)) + image[bottom, right] * (x - left)
            result[i, j] = upper * (1 - (y - top)) + lower * (y - top)
    return result


# --- Augmentation: section 2.2, "Data augmentation", one draw after the other ---


def sample_crop(rng, boxes, trials=50):
    """(which sampler, crop): the whole image is sampler 0, the unconstrained one is 6."""
    found = [(0, (0.0, 0.0, 1.0, 1.0))]
    for sampler, least in enumerate((0.1, 0.3, 0.5, 0.7, 0.9, None), start=1):
        for _ in range(trials):
            scale = rng.uniform(0.3, 1)
            ratio = rng.uniform(max(0.5, scale**2), min(2, 1 / scale**2))
            width, height = scale * math.sqrt(ratio), scale / math.sqrt(ratio)
            x, y = rng.uniform(0, 1 - width), rng.uniform(0, 1 - height)
            crop = (x, y, x + width, y + height)
            if least is None or any(iou(crop, box) >= least for box in boxes):
                found.append((sampler, crop))
                break
    return rng.choice(found)


def boxes_in_crop(crop, boxes):
    """Boxes relative to a crop, clipped; None for one whose center lies outside."""
    left, top, right, bottom = crop
    result = []
    for x0, y0, x1, y1 in boxes:
        cx, cy = (x0 + x1) / 2, (y0 + y1) / 2
        if left <= cx <= right and top <= cy <= bottom:
            x0, x1 = ((min(max(x, left), right) - left) / (right - left) for x in (x0, x1))
            y0, y1 = ((min(max(y, top), bottom) - top) / (bottom - top) for y in (y0, y1))
            result.append((x0, y0, x1, y1))
        else:
            result.append(None)
    return result


def kernel(name, x):
    """Weight of a pixel at the distance x from where a filter of OpenCV reads."""
    x = abs(x)
    if name == "linear":
        return max(1 - x, 0)
    if name == "cubic":
        if x <= 1:
            return 1.25 * x**3 - 2.25 * x**2 + 1
        return -0.75 * x**3 + 3.75 * x**2 - 6 * x + 3 if x < 2 else 0
    if x >= 4:
        return 0
    return (
        1 if x == 0 else 4 * math.sin(math.pi * x) * math.sin(math.pi * x / 4) / (math.pi * x) ** 2
    )


def resize_line(line, count, name):
    """`[N, ...]` resampled to `[count, ...]`; the border repeats."""
    line = np.asarray(line, np.float64)
    step, last = len(line) / count, len(line) - 1
    result = []
    for i in range(count):
        if name == "area":
            taps = range(math.floor(i * step), math.ceil((i + 1) * step - 1e-9))
            weights = [min((i + 1) * step, t + 1) - max(i * step, t) for t in taps]
        elif name == "nearest":
            taps, weights = [math.floor((i + 0.5) * step)], [1]
        else:
            center = (i + 0.5) * step - 0.5
            taps = range(math.floor(center) - 3, math.floor(center) + 5)
            weights = [kernel(name, center - t) for t in taps]
        values = [line[min(max(t, 0), last)] * w for t, w in zip(taps, weights, strict=True)]
        result.append(sum(values) / sum(weights))
    return np.array(result)


def warp(image, canvas, crop, mean, size, flip, name):
    """Expand, crop, resize, flip, each an image of its own; canvas and crop in whole pixels."""
    left, top, right, bottom = canvas
    expanded = np.tile(np.asarray(mean, np.float64), (bottom - top, right - left, 1))
    expanded[-top : image.shape[0] - top, -left : image.shape[1] - left] = image
    x0, y0, x1, y1 = crop
    rows = resize_line(expanded[y0:y1, x0:x1], size, name)
    resized = resize_line(rows.swapaxes(0, 1), size, name).swapaxes(0, 1)
    return np.clip(resized[:, ::-1] if flip else resized, 0, 255)
