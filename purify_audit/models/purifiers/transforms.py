"""Input transformations (JPEG, smoothing, bit depth, noise): baseline purifiers.

Each follows the definition in the literature, checked against its usual implementation
(`scipy.ndimage`, Pillow). All but JPEG use torch operations that are exactly rounded or pure
selection, in an order that depends only on the shape of one image, so the result is the same in any
batch and on any device.
"""

import io
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, assert_never, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from purify_audit.core.errors import PlanError
from purify_audit.core.noise import Noise
from purify_audit.core.records import Record, first_fault
from purify_audit.models.protocols import PurifierFromCard
from purify_audit.spec.card import ImageSpec, Provenance, TransformCard
from purify_audit.spec.notation import parse_settings
from purify_audit.spec.transforms import (
    BitDepth,
    GaussianNoise,
    GaussianSmoothing,
    Identity,
    Jpeg,
    Median,
    Transform,
)

_KINDS: dict[str, type[Record]] = {
    model.model_fields["kind"].default: model for model in get_args(get_args(Transform)[0])
}
TRANSFORM_NAMES = tuple(_KINDS)
_NO_WEIGHTS = Provenance(data="none", command="none", licence="none")
_TRUNCATE = 4.0  # standard deviations, scipy.ndimage's default
_WINDOW_VALUES = 2**24  # sorted at a time by `smooth_median`: about 256 MiB with their indices


@dataclass(frozen=True, slots=True)
class TransformPurifier(PurifierFromCard):
    """An input transformation as a purifier.

    Attributes:
        card: which transformation, with which settings, of which images.

    Raises:
        PlanError: the transformation cannot take such images (JPEG takes 1 or 3 channels).
    """

    card: TransformCard

    def __post_init__(self) -> None:
        """Refuse images that the transformation is not defined for."""
        channels = self.image.channels
        if isinstance(self.card.transform, Jpeg) and channels not in (1, 3):
            raise PlanError(
                f"transform '{self.card.name}' takes images of 1 or 3 channels, not {channels}; "
                "choose another transform"
            )

    def __call__(self, x: Tensor, noise: Noise) -> Tensor:
        """Transform images [n, channels, height, width], pixels in [0, 1], to the same shape.

        The result shares no memory with `x`, keeps its dtype, and stays in [0, 1] except under
        added noise, which is not clipped. `noise` has n rows and is read under added noise only.

        Raises:
            ValueError: `x` is not of the card's shape, or `noise` has another number of rows.
        """
        if tuple(x.shape[1:]) != self.image.shape or len(noise) != len(x):
            raise ValueError(
                f"images {tuple(x.shape)} with {len(noise)} rows of noise given to "
                f"'{self.card.name}', which takes [n, {', '.join(map(str, self.image.shape))}]"
            )
        match self.card.transform:
            case Identity():
                return x.clone()
            case BitDepth(bits=bits):
                return reduce_bit_depth(x, bits)
            case Jpeg(quality=quality):
                return compress_jpeg(x, quality)
            case Median(size=size):
                return smooth_median(x, size)
            case GaussianSmoothing(sigma=sigma):
                return smooth_gaussian(x, sigma)
            case GaussianNoise(sigma=sigma):
                return add_gaussian_noise(x, sigma, noise)
            case other:
                assert_never(other)


def parse_transform(text: str, image: ImageSpec) -> TransformCard:
    """The card of a transformation written `NAME` or `NAME:key=value,key=value`.

    Args:
        text: for example `jpeg:quality=75`; omitted settings have their defaults. It becomes the
            name of the card.
        image: the images to transform.

    Raises:
        PlanError: the text is malformed, or the name, a setting or a value is not accepted.
    """
    name, settings = parse_settings(text)
    if name not in _KINDS:
        near = get_close_matches(name, TRANSFORM_NAMES, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise PlanError(f"no transform '{name}': choose from {', '.join(TRANSFORM_NAMES)}{hint}")
    try:
        transform: Any = _KINDS[name].model_validate(settings)
        return TransformCard(name=text, image=image, provenance=_NO_WEIGHTS, transform=transform)
    except ValidationError as error:
        takes = ", ".join(key for key in _KINDS[name].model_fields if key != "kind") or "no setting"
        raise PlanError(f"transform '{text}': {first_fault(error)}; {name} takes {takes}") from None


def reduce_bit_depth(x: Tensor, bits: int) -> Tensor:
    """Round pixels to 2**bits levels: round(x (2**bits − 1)) / (2**bits − 1), half to even.

    Xu, Evans and Qi, "Feature squeezing", NDSS 2018, section III.A. The derivative is 0.

    Args:
        x: [n, channels, height, width], pixels in [0, 1].
        bits: of each channel, at least 1.
    """
    # A tensor on x's device: CUDA divides by a Python number as × reciprocal, off in the last bit.
    levels = x.new_full((), 2.0**bits - 1.0)
    return torch.round(x * levels) / levels


def compress_jpeg(x: Tensor, quality: int) -> Tensor:
    """Round to 8 bits, write as JPEG and read back, each image by itself, on the CPU.

    Dziugaite, Ghahramani and Roy, "A study of the effect of JPG compression on adversarial
    images", 2016; as Pillow writes it, with 4:2:0 chroma subsampling. The pixels may differ by a
    level or so between builds of libjpeg.

    Args:
        x: [n, 1 or 3, height, width], pixels in [0, 1] (clipped to it).
        quality: of libjpeg, in [1, 100].

    Returns:
        Images of the same shape, dtype and device. The derivative is 0, as of any rounding.
    """
    levels = torch.round(x.detach() * 255.0).clamp(0.0, 255.0).to("cpu", torch.uint8)
    pixels = levels.permute(0, 2, 3, 1).contiguous().numpy()
    decoded = np.empty_like(pixels)
    for row, image in enumerate(pixels):
        decoded[row] = _through_jpeg(image, quality)
    on_cpu = torch.from_numpy(decoded).permute(0, 3, 1, 2).contiguous().to(x.dtype) / 255.0
    # 0 x: in the graph with its true derivative, like `reduce_bit_depth`; and NaN stays NaN.
    return on_cpu.to(x.device) + 0.0 * x


def _through_jpeg(pixels: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    """Encode and decode one image, uint8 [height, width, 1 or 3]; same shape."""
    grey = pixels.shape[2] == 1
    buffer = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if grey else pixels).save(buffer, "JPEG", quality=quality)
    with Image.open(buffer, formats=("JPEG",)) as decoded:
        return np.asarray(decoded, np.uint8).reshape(pixels.shape)


def smooth_median(x: Tensor, size: int) -> Tensor:
    """Median of the size × size window around each pixel, each channel by itself.

    Xu, Evans and Qi, "Feature squeezing", NDSS 2018, section III.B, which is
    `scipy.ndimage.median_filter(x, size=(1, 1, size, size), mode="reflect")`, to the bit: an even
    window reaches one pixel farther up and left, and an even count takes the upper median.

    Args:
        x: [n, channels, height, width].
        size: width of the window in pixels, at least 1; it may exceed the image.

    Returns:
        Images of the same shape and dtype. The derivative goes to the pixel that was selected.
    """
    before, after = size // 2, size - 1 - size // 2
    padded = _reflect(_reflect(x, 2, before, after), 3, before, after)
    windows = padded.unfold(2, size, 1).unfold(3, size, 1)
    rows = max(1, _WINDOW_VALUES // (x[:1].numel() * size**2 or 1))
    medians = []
    for part in torch.split(windows, rows):
        # Stable sort, not kthvalue or median, which have no deterministic CUDA implementation.
        ordered = torch.sort(part.flatten(4), dim=-1, stable=True).values
        medians.append(ordered[..., size**2 // 2])
    return torch.cat(medians)


def smooth_gaussian(x: Tensor, sigma: float) -> Tensor:
    """Convolve with a Gaussian of standard deviation `sigma` pixels, cut off at 4 sigma.

    The same as `scipy.ndimage.gaussian_filter(x, sigma=(0, 0, sigma, sigma), mode="reflect")`:
    weights normalised to sum 1, height before width, sums in float64.

    Args:
        x: [n, channels, height, width].
        sigma: in pixels, above 0.

    Returns:
        Images of the same shape and dtype.
    """
    radius = int(_TRUNCATE * sigma + 0.5)
    weights = np.exp(-0.5 / (sigma * sigma) * np.arange(-radius, radius + 1) ** 2)
    half = [float(weight) for weight in (weights / weights.sum())[radius:]]
    return _correlate(_correlate(x, half, 2), half, 3)


def _correlate(x: Tensor, half: list[float], dim: int) -> Tensor:
    """Correlate along `dim` with a symmetric kernel, of which `half` is the centre and one side.

    Sums of shifted images in float64, in the order of scipy.ndimage's correlate1d. A library
    convolution would be faster, but may choose its order of summation by the batch.
    """
    radius, size = len(half) - 1, x.shape[dim]
    padded = _reflect(x.to(torch.float64), dim, radius, radius)
    total = padded.narrow(dim, radius, size) * half[0]
    for j in range(radius, 0, -1):
        pair = padded.narrow(dim, radius - j, size) + padded.narrow(dim, radius + j, size)
        total = total + pair * half[j]
    return total.to(x.dtype)


def _reflect(x: Tensor, dim: int, before: int, after: int) -> Tensor:
    """Pad by mirror images that repeat the edge (d c b a | a b c d | d c b a), as often as needed.

    scipy.ndimage calls it "reflect", numpy "symmetric"; torch's own "reflect" leaves the edge out.
    """
    size = x.shape[dim]
    place = torch.arange(-before, size + after, device=x.device) % (2 * size)
    return x.index_select(dim, torch.minimum(place, 2 * size - 1 - place))


def add_gaussian_noise(x: Tensor, sigma: float, noise: Noise) -> Tensor:
    """Add noise: x + sigma z, z standard normal, not clipped.

    Cohen, Rosenfeld and Kolter, "Certified adversarial robustness via randomized smoothing",
    ICML 2019, eq. 1.

    Args:
        x: [n, channels, height, width].
        sigma: standard deviation, pixel units.
        noise: n addresses on x's device; z is step 0.
    """
    return x + noise.normal(0, tuple(x.shape[1:])).to(x.dtype) * sigma
