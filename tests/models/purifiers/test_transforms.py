"""Input transformations against scipy, Pillow and arithmetic by hand."""

import io
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from purify_audit.core.errors import PlanError
from purify_audit.core.noise import Noise, Stream
from purify_audit.models.protocols import Purifier
from purify_audit.models.purifiers import transforms
from purify_audit.models.purifiers.transforms import (
    TRANSFORM_NAMES,
    TransformPurifier,
    add_gaussian_noise,
    compress_jpeg,
    parse_transform,
    reduce_bit_depth,
    smooth_gaussian,
    smooth_median,
)
from purify_audit.spec.card import ImageSpec, TransformCard
from purify_audit.spec.transforms import Jpeg

COLOUR = ImageSpec(channels=3, height=8, width=8)
EVERY = (
    "identity",
    "bit-depth:bits=4",
    "jpeg:quality=75",
    "median:size=2",
    "median:size=3",
    "gaussian-smoothing:sigma=1.0",
    "gaussian-noise:sigma=0.1",
)


def pixels(n=5, channels=3, height=8, width=8, dtype=np.float32, seed=0):
    drawn = np.random.default_rng(seed).random((n, channels, height, width))
    return torch.from_numpy(drawn.astype(dtype))


def addresses(n=5, draw=3):
    return Noise(seed=11, images=tuple(range(100, 100 + n)), draws=(draw,) * n)


def purifier(text, image=COLOUR):
    return TransformPurifier(parse_transform(text, image))


# --- bit depth ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bits", "x", "expected"),
    [
        (1, [0.0, 0.49, 0.5, 0.51, 1.0], [0, 0, 0, 1, 1]),  # 0.5 is half way: to even, 0
        (2, [0.16, 0.17, 0.5, 0.84, 0.83], [0, 1 / 3, 2 / 3, 1, 2 / 3]),  # 1.5 to even, 2
        (3, [0.3, 0.5], [2 / 7, 4 / 7]),  # 3.5 to even, 4
        (8, [0.5, 0.2], [128 / 255, 51 / 255]),
    ],
)
def test_bit_depth_by_hand(bits, x, expected):
    out = reduce_bit_depth(torch.tensor(x)[None, None, None], bits)
    torch.testing.assert_close(out.flatten(), torch.tensor(expected, dtype=torch.float32))


@pytest.mark.parametrize("bits", range(1, 9))
def test_bit_depth_is_the_published_formula_to_the_bit(bits):
    x = pixels(n=20)
    top = np.float32(2**bits - 1)
    out = reduce_bit_depth(x, bits)
    assert np.array_equal(out.numpy(), np.rint(x.numpy() * top) / top)
    assert len(out.unique()) <= 2**bits
    assert torch.equal(reduce_bit_depth(out, bits), out)


# --- JPEG ---------------------------------------------------------------------------------------


def jpeg_by_pillow(image, quality):
    """float32 [c, h, w] -> float32 [c, h, w], written out independently; 4:2:0 stated."""
    bytes_ = np.floor(image.astype(np.float64) * 255 + 0.5).astype(np.uint8)
    file = io.BytesIO()
    if len(image) == 1:
        Image.fromarray(bytes_[0]).save(file, format="JPEG", quality=quality)
        return np.asarray(Image.open(file))[None].astype(np.float32) / np.float32(255)
    planes = [Image.fromarray(plane) for plane in bytes_]
    Image.merge("RGB", planes).save(file, format="JPEG", quality=quality, subsampling=2)
    return np.asarray(Image.open(file)).transpose(2, 0, 1).astype(np.float32) / np.float32(255)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("quality", [1, 30, 75, 100])
@pytest.mark.parametrize("size", [(8, 8), (17, 12)])
def test_jpeg_is_pillows(channels, quality, size):
    x = pixels(n=3, channels=channels, height=size[0], width=size[1])
    out = compress_jpeg(x, quality)
    expected = np.stack([jpeg_by_pillow(image, quality) for image in x.numpy()])
    assert out.dtype == torch.float32
    assert out.is_contiguous()
    assert np.array_equal(out.numpy(), expected)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("level", [0, 1, 100, 254, 255])
def test_jpeg_of_a_flat_grey_image_at_full_quality_is_nearly_the_image(channels, level):
    x = torch.full((2, channels, 16, 16), level / 255)
    assert (compress_jpeg(x, 100) - x).abs().max() <= 1.01 / 255


def test_jpeg_of_noise_loses_more_at_lower_quality():
    x = pixels(n=4, height=32, width=32)
    errors = [float((compress_jpeg(x, q) - x).square().mean()) for q in (100, 75, 25, 5)]
    assert errors == sorted(errors)
    assert errors[0] < errors[-1]


def test_jpeg_clips_pixels_out_of_range():
    x = 3 * pixels() - 1
    assert torch.equal(compress_jpeg(x, 75), compress_jpeg(x.clamp(0, 1), 75))


def test_jpeg_keeps_nan_where_it_was():
    x = pixels()
    x[2, 1, 3, 4] = torch.nan
    out = compress_jpeg(x, 75)
    assert out.isnan().sum() == 1
    assert out[2, 1, 3, 4].isnan()


@pytest.mark.parametrize("channels", [2, 4])
def test_jpeg_of_other_channels_is_refused_when_built(channels):
    image = ImageSpec(channels=channels, height=8, width=8)
    with pytest.raises(PlanError, match=f"'jpeg' takes images of 1 or 3 channels, not {channels}"):
        purifier("jpeg", image)


# --- median -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", range(1, 16))
@pytest.mark.parametrize("shape", [(8, 8), (5, 11), (1, 1), (1, 3)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_median_is_scipys_to_the_bit(size, shape, dtype):
    x = pixels(n=2, height=shape[0], width=shape[1], dtype=dtype, seed=size)
    out = smooth_median(x, size)
    expected = ndimage.median_filter(x.numpy(), size=(1, 1, size, size), mode="reflect")
    assert out.numpy().dtype == dtype
    assert np.array_equal(out.numpy(), expected)


def test_an_even_window_reaches_up_and_left_and_takes_the_upper_median():
    x = torch.tensor([[0.1, 0.2], [0.3, 0.4]])[None, None]
    # Top left sees 0.1 four times; bottom right sees all four and takes the third smallest.
    expected = torch.tensor([[0.1, 0.2], [0.3, 0.3]])[None, None]
    assert torch.equal(smooth_median(x, 2), expected)


def test_median_does_not_depend_on_how_many_rows_are_sorted_at_a_time(monkeypatch):
    x = pixels(n=7)
    whole = smooth_median(x, 3)
    for values in (1, 3 * 8 * 8 * 9 * 2):
        monkeypatch.setattr(transforms, "_WINDOW_VALUES", values)
        assert torch.equal(smooth_median(x, 3), whole)


def test_the_derivative_of_the_median_goes_to_the_selected_pixel():
    x = pixels(n=1, channels=1).requires_grad_()
    out = smooth_median(x, 3)
    (gradient,) = torch.autograd.grad(out[0, 0, 4, 4], x)
    assert gradient.sum() == 1
    assert x[gradient == 1].item() == out[0, 0, 4, 4].item()


# --- Gaussian smoothing -------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.05, 0.3, 0.5, 1.0, 1.7, 4.0, 16.0])
@pytest.mark.parametrize("shape", [(8, 8), (5, 11), (1, 1)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-6), (np.float64, 1e-14)])
def test_gaussian_smoothing_is_scipys(sigma, shape, dtype, tolerance):
    x = pixels(n=2, height=shape[0], width=shape[1], dtype=dtype, seed=int(10 * sigma))
    out = smooth_gaussian(x, sigma)
    expected = ndimage.gaussian_filter(
        x.numpy(), sigma=(0, 0, sigma, sigma), truncate=4.0, mode="reflect"
    )
    assert out.numpy().dtype == dtype
    np.testing.assert_allclose(out.numpy(), expected, rtol=0, atol=tolerance)


def test_gaussian_smoothing_keeps_the_mean_and_the_range():
    x = pixels()
    out = smooth_gaussian(x, 2.0)
    torch.testing.assert_close(out.mean((2, 3)), x.mean((2, 3)))
    assert out.min() >= 0
    assert out.max() <= 1
    assert out.var() < 0.1 * x.var()


# --- Gaussian noise -----------------------------------------------------------------------------


def test_noise_has_the_stated_mean_and_variance_and_is_not_clipped():
    sigma, n, size = 0.25, 50, 20
    x = torch.ones(n, 1, size, size)
    noise = addresses(n)
    added = (purifier("gaussian-noise:sigma=0.25", ImageSpec(channels=1, height=20, width=20)))(
        x, noise
    ).double() - 1
    count = added.numel()
    assert abs(float(added.mean())) < 5 * sigma / math.sqrt(count)
    # Var of the sample variance of a normal is 2 sigma^4 / (n - 1).
    assert abs(float(added.var()) - sigma**2) < 5 * sigma**2 * math.sqrt(2 / (count - 1))
    assert added.max() > 0


def test_noise_is_the_addressed_numbers():
    x, noise = pixels(), addresses()
    expected = x.numpy() + np.float32(0.1) * noise.normal(0, (3, 8, 8)).numpy()
    assert np.array_equal(add_gaussian_noise(x, 0.1, noise).numpy(), expected)


def test_permuting_rows_and_addresses_permutes_the_noise():
    x, noise = pixels(), addresses()
    order = [3, 0, 4, 2, 1]
    shuffled = Noise(noise.seed, tuple(noise.images[i] for i in order), noise.draws)
    noisy = add_gaussian_noise(x, 0.1, noise)
    assert torch.equal(add_gaussian_noise(x[order], 0.1, shuffled), noisy[order])


def test_another_draw_seed_or_stream_gives_other_noise_and_the_same_address_the_same():
    x = pixels()
    noisy = add_gaussian_noise(x, 0.1, addresses())
    assert torch.equal(add_gaussian_noise(x, 0.1, addresses()), noisy)
    for other in (
        addresses(draw=4),
        Noise(12, addresses().images, addresses().draws),
        replace(addresses(), stream=Stream.PREFLIGHT),
    ):
        assert not torch.isclose(add_gaussian_noise(x, 0.1, other), noisy).all(1).any()


# --- what all of them keep ----------------------------------------------------------------------


@pytest.mark.parametrize("text", EVERY)
def test_every_transform_is_a_purifier(text):
    transform = purifier(text)
    assert isinstance(transform, Purifier)
    assert transform.image == COLOUR
    assert transform.evaluations == 1
    assert transform.randomised == text.startswith("gaussian-noise")


def test_every_kind_is_tested():
    assert {text.partition(":")[0] for text in EVERY} == set(TRANSFORM_NAMES)


@pytest.mark.parametrize("text", EVERY)
@pytest.mark.parametrize("width", [8, 9])
def test_rows_do_not_influence_one_another(text, width):
    transform = purifier(text, ImageSpec(channels=3, height=8, width=width))
    x, noise = pixels(n=7, width=width), addresses(7)
    together = transform(x, noise)
    for n in range(7):
        row = slice(n, n + 1)
        assert torch.equal(transform(x[row].clone(), noise[row]), together[row])
    assert torch.equal(transform(x[2:6], noise[2:6]), together[2:6])
    spoiled = x.clone()
    spoiled[0] = torch.nan
    assert torch.equal(transform(spoiled, noise)[1:], together[1:])


@pytest.mark.parametrize("text", EVERY)
def test_the_input_and_its_memory_are_left_alone(text):
    x = pixels()
    before = x.clone()
    out = purifier(text)(x, addresses())
    assert out.shape == x.shape
    out.fill_(7.0)
    assert torch.equal(x, before)


@pytest.mark.parametrize("text", EVERY)
def test_strides_do_not_matter(text):
    transform, x = purifier(text), pixels()
    out = transform(x.contiguous(memory_format=torch.channels_last), addresses())
    assert torch.equal(out, transform(x, addresses()))


@pytest.mark.parametrize("text", [text for text in EVERY if not text.startswith("gaussian-noise")])
def test_only_added_noise_depends_on_the_draw_or_leaves_the_range(text):
    transform, x = purifier(text), pixels()
    out = transform(x, addresses())
    assert torch.equal(out, transform(x, addresses(draw=9)))
    assert out.min() >= 0
    assert out.max() <= 1


def test_the_identity_is_the_image():
    x = pixels()
    assert torch.equal(purifier("identity")(x, addresses()), x)


@pytest.mark.parametrize("text", EVERY)
def test_inference_mode_and_an_empty_batch(text):
    transform, x = purifier(text), pixels()
    expected = transform(x, addresses())
    with torch.inference_mode():
        assert torch.equal(transform(x.clone(), addresses()), expected)
    if not transform.randomised:
        assert transform(x[:0], addresses(0)).shape == (0, 3, 8, 8)


@pytest.mark.parametrize("text", EVERY)
def test_float64_stays_float64(text):
    assert purifier(text)(pixels(dtype=np.float64), addresses()).dtype == torch.float64


@pytest.mark.parametrize(
    "text", ["identity", "median:size=2", "median:size=3", "gaussian-smoothing", "gaussian-noise"]
)
def test_gradients_are_exact(text):
    image = ImageSpec(channels=2, height=4, width=5)
    x = pixels(n=2, channels=2, height=4, width=5, dtype=np.float64).requires_grad_()
    transform, noise = purifier(text, image), addresses(2)
    assert torch.autograd.gradcheck(lambda x: transform(x, noise), (x,))


@pytest.mark.parametrize("text", ["bit-depth", "jpeg"])
def test_roundings_have_gradient_zero(text):
    x = pixels().requires_grad_()
    (gradient,) = torch.autograd.grad(purifier(text)(x, addresses()).sum(), x)
    assert not gradient.any()


@pytest.mark.parametrize(
    ("shape", "rows"), [((5, 3, 8, 9), 5), ((5, 1, 8, 8), 5), ((3, 8, 8), 3), ((5, 3, 8, 8), 1)]
)
def test_images_of_another_shape_or_rows_without_an_address_are_refused(shape, rows):
    message = f"images {shape} with {rows} rows of noise given to 'identity', "
    with pytest.raises(ValueError, match=re.escape(message + "which takes [n, 3, 8, 8]")):
        purifier("identity")(torch.zeros(shape), addresses(rows))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("text", EVERY)
def test_the_gpu_gives_the_same_bits(text):
    transform, x, noise = purifier(text), pixels(), addresses()
    there = Noise(noise.seed, noise.images, noise.draws, device=torch.device("cuda"))
    out = transform(x.cuda(), there)
    assert out.is_cuda
    assert torch.equal(out.cpu(), transform(x, noise))


# --- the notation -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("identity", {"kind": "identity"}),
        ("bit-depth:bits=4", {"kind": "bit-depth", "bits": 4}),
        ("bit-depth", {"kind": "bit-depth", "bits": 5}),
        ("jpeg:quality=75", {"kind": "jpeg", "quality": 75}),
        ("median:size=3", {"kind": "median", "size": 3}),
        ("gaussian-smoothing:sigma=1.5", {"kind": "gaussian-smoothing", "sigma": 1.5}),
        ("gaussian-noise:sigma=1e-1", {"kind": "gaussian-noise", "sigma": 0.1}),
    ],
)
def test_the_notation_becomes_a_card(text, settings):
    card = parse_transform(text, COLOUR)
    assert card.transform.model_dump() == settings
    assert card.name == text
    assert card.image == COLOUR
    assert card.provenance.licence == "none"
    assert TransformCard.model_validate_json(card.model_dump_json()) == card


def test_the_names():
    assert TRANSFORM_NAMES == (
        "identity",
        "bit-depth",
        "jpeg",
        "median",
        "gaussian-smoothing",
        "gaussian-noise",
    )
    assert parse_transform("jpeg", COLOUR).transform == Jpeg()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "jpg",
            "^no transform 'jpg': choose from identity, .*; did you mean 'jpeg'\\?$",
        ),
        ("gaussian-nosie:sigma=1", "; did you mean 'gaussian-noise'\\?$"),
        ("xyzzy", "^no transform 'xyzzy': choose from .*gaussian-smoothing, gaussian-noise$"),
        ("", "names nothing"),
        ("jpeg:quality", "'quality' is not key=value"),
        ("jpeg:quality=1,quality=2", "gives 'quality' twice"),
        ("jpeg:kind=median", "'kind' is no setting"),
        (
            "jpeg:qualty=75",
            "^transform 'jpeg:qualty=75': field 'qualty': Extra inputs .*; jpeg takes quality$",
        ),
        ("identity:size=3", "field 'size': Extra inputs .*; identity takes no setting$"),
        ("jpeg:quality=101", "field 'quality': Input should be less than or equal to 100; "),
        ("jpeg:quality=7.5", "field 'quality': Input should be a valid integer"),
        ("jpeg:quality=high", "field 'quality': Input should be a valid integer"),
        ("bit-depth:bits=0", "field 'bits': Input should be greater than or equal to 1"),
        ("median:size=16", "field 'size': Input should be less than or equal to 15"),
        ("gaussian-noise:sigma=nan", "field 'sigma': Input should be a finite number"),
        ("gaussian-noise:sigma=0", "field 'sigma': Input should be greater than 0"),
        ("gaussian-smoothing:sigma=-1,x=2", "field 'sigma': .* \\(and 1 more fault\\)"),
        ("jpeg:quality=" + "0" * 200 + "75", "field 'name': String should have at most 200"),
    ],
)
def test_what_cannot_be_read_is_refused_with_a_sentence(text, message):
    with pytest.raises(PlanError) as raised:
        parse_transform(text, COLOUR)
    assert re.search(message, str(raised.value)), str(raised.value)
