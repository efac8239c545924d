"""Images of an attack as PNG tiles inside a page, within a byte budget."""

import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from purify_audit.statistics.attack_rows import ExampleImages

GAIN = 10.0
"""What the difference is multiplied by."""

_SIDES = (224, 112, 80, 56, 40, 28, 16)  # pixels of a tile's longer side that are tried in turn


@dataclass(frozen=True, slots=True)
class Tile:
    """One picture.

    Attributes:
        what: what it shows.
        uri: `data:image/png;base64,…`.
    """

    what: str
    uri: str


@dataclass(frozen=True, slots=True)
class Strip:
    """The pictures of one image.

    Attributes:
        image: its id.
        worst: whether it is one of the worst.
        predicted: the label of P(x + δ; ξ).
        tiles: clean, attacked, purified clean, purified attacked, and the difference.
        finite: whether all of its pixels are numbers.
    """

    image: int
    worst: bool
    predicted: int
    tiles: tuple[Tile, ...]
    finite: bool


@dataclass(frozen=True, slots=True)
class Gallery:
    """As many example images as a budget allows.

    Attributes:
        strips: worst first.
        left_out: how many more there are.
        side: longer side of an image, in its own pixels.
        shown_side: longer side of a tile's.
    """

    strips: tuple[Strip, ...]
    left_out: int
    side: int
    shown_side: int


def gallery(example_images: ExampleImages, budget: int) -> Gallery:
    """Example images as tiles of at most `budget` bytes: first made smaller, then fewer."""
    side = int(max(example_images.clean.shape[2:], default=0))
    count = len(example_images.ids)
    sides = [side, *(s for s in _SIDES if s < side)]
    for shown in sides:
        if shown > _SIDES[0]:
            continue
        if count and _weight(_strip(example_images, 0, shown)) * count > 2 * budget:
            continue  # one image is representative of the others
        strips = tuple(_strip(example_images, n, shown) for n in range(count))
        if sum(map(_weight, strips)) <= budget:
            return Gallery(strips, 0, side, shown)
    kept, spent = list[Strip](), 0
    for n in _alternating(example_images.worst):
        strip = _strip(example_images, n, sides[-1])
        spent += _weight(strip)
        if spent > budget:
            break
        kept.append(strip)
    kept.sort(key=lambda s: not s.worst)
    return Gallery(tuple(kept), count - len(kept), side, sides[-1])


def _alternating(worst: np.ndarray) -> list[int]:
    """Places of the worst and of the others, in turn."""
    ranked = [*enumerate(np.flatnonzero(worst)), *enumerate(np.flatnonzero(~worst))]
    return [int(place) for _, place in sorted(ranked, key=lambda pair: pair[0])]


def _weight(strip: Strip) -> int:
    return sum(len(tile.uri) for tile in strip.tiles)


def _strip(example_images: ExampleImages, n: int, side: int) -> Strip:
    clean, purified = example_images.clean[n], example_images.purified[n]
    shown = {
        "clean": clean,
        "attacked": example_images.attacked[n],
        "purified clean": example_images.anchor[n],
        "purified attacked": purified,
        "difference": 0.5 + GAIN * (purified - clean),
    }
    return Strip(
        image=int(example_images.ids[n]),
        worst=bool(example_images.worst[n]),
        predicted=int(example_images.predicted[n]),
        tiles=tuple(Tile(what, data_uri(pixels, side)) for what, pixels in shown.items()),
        finite=bool(all(np.isfinite(pixels).all() for pixels in shown.values())),
    )


def data_uri(pixels: np.ndarray, side: int) -> str:
    """An image [c, h, w] in [0, 1] as a PNG of at most `side` pixels a side.

    Values outside [0, 1] are cut, those that are no numbers are mid-grey. One channel is grey,
    three are red, green and blue; of any other number the mean is shown.
    """
    whole = np.nan_to_num(pixels.astype(np.float64), nan=0.5, posinf=0.5, neginf=0.5)
    if len(whole) not in (1, 3):
        whole = whole.mean(0, keepdims=True)
    levels = np.rint(np.clip(whole, 0.0, 1.0) * 255.0).astype(np.uint8)
    image = Image.fromarray(levels[0] if len(levels) == 1 else levels.transpose(1, 2, 0))
    longest = max(image.size)
    if longest > side:
        width, height = (max(1, round(length * side / longest)) for length in image.size)
        image = image.resize((width, height), Image.Resampling.BOX)
    out = io.BytesIO()
    image.save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
