"""Randomness by address: known answers, equivariance, agreement of libraries, distribution."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from purify_audit.core.noise import (
    Noise,
    Stream,
    _to_normal,
    _to_signs,
    _to_uniform,
    _words,
    philox4x32,
)

SHAPE = (3, 5, 7)  # 105 numbers: not a multiple of the four words of a block

# The Random123 known-answer vectors for philox4x32-10: counter, key, result.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (
        (0xFFFFFFFF,) * 4,
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN)
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_random123_known_answers(counter, key, result, library):
    make = (
        (lambda v: np.array([v], np.int64)) if library == "numpy" else (lambda v: torch.tensor([v]))
    )
    words = philox4x32(tuple(make(c) for c in counter), key[0] | key[1] << 32)
    assert tuple(int(w[0]) for w in words) == result


def test_spec_example():
    """The worked numbers of docs/noise.md, section 6: a change of the spec cannot pass unseen."""
    noise = Noise(2505_22839, (7,), (3,))
    words = _words(np.array([[7, 3, 0]]), noise, 4)[0].tolist()
    assert words == [0x0140306C, 0x3D320485, 0x03661A85, 0x44CD2873]
    normals = [0.224395751953125, 3.2546234130859375, -0.3456573486328125, 2.919586181640625]
    assert noise.normal(0, (4,))[0].tolist() == normals
    uniforms = [0.004885733127593994, 0.23904448747634888, 0.013276755809783936]
    assert noise.uniform(0, (3,))[0].tolist() == uniforms
    assert noise.signs(0, (4,))[0].tolist() == [-1.0, -1.0, -1.0, -1.0]
    assert noise.integers(0, (4,), 1000)[0].tolist() == [4, 239, 13, 268]


def rows(images, draws, seed=5):
    return Noise(seed, tuple(images), tuple(draws))


@pytest.mark.parametrize("kind", ["normal", "uniform", "signs", "integers"])
@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
def test_permuting_and_chunking_a_batch_permutes_and_chunks_the_noise(kind, data):
    addresses = data.draw(
        st.lists(
            st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)), min_size=1, max_size=12
        )
    )
    order = data.draw(st.permutations(range(len(addresses))))
    cut = data.draw(st.integers(0, len(addresses)))

    def make(which):
        part = [addresses[i] for i in which]
        noise = rows([a for a, _ in part], [b for _, b in part])
        extra = (1000,) if kind == "integers" else ()
        return getattr(noise, kind)(11, SHAPE, *extra)

    whole = make(range(len(addresses)))
    assert torch.equal(make(order), whole[list(order)])
    assert torch.equal(torch.cat((make(range(cut)), make(range(cut, len(addresses))))), whole)


def test_slicing_noise_slices_numbers():
    noise = rows(range(6), range(6))
    assert torch.equal(noise[2:5].normal(1, SHAPE), noise.normal(1, SHAPE)[2:5])
    assert len(noise[2:5]) == 3


def test_many_steps_at_once_are_the_steps_one_by_one():
    noise = rows((3, 4, 3), (0, 0, 0))
    together = noise.normals(5, 4, SHAPE)
    assert torch.equal(together, torch.stack([noise.normal(5 + k, SHAPE) for k in range(4)]))


def test_an_empty_batch_has_no_numbers():
    assert rows((), ()).normal(0, SHAPE).shape == (0, *SHAPE)


def test_a_longer_shape_begins_with_the_shorter():
    noise = rows((3,), (4,))
    assert torch.equal(noise.normal(0, (64,))[:, :10], noise.normal(0, (10,)))


@pytest.mark.parametrize("convert", [_to_normal, _to_uniform, _to_signs])
def test_numpy_and_torch_agree_bitwise(convert):
    noise = rows(range(64), range(64), seed=2**63 + 12345)
    pairs = np.stack((np.arange(64), np.arange(64), np.full(64, 9)), 1)
    by_numpy = _words(pairs, noise, 3072)
    by_torch = _words(torch.from_numpy(pairs), noise, 3072)
    assert np.array_equal(by_numpy, by_torch.numpy())
    a, b = convert(by_numpy), convert(by_torch)
    assert a.dtype == np.float32
    assert b.dtype == torch.float32
    assert a.tobytes() == b.numpy().tobytes()  # 196,608 numbers


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here")
@pytest.mark.parametrize("kind", ["normal", "uniform", "signs"])
def test_cuda_agrees_bitwise(kind):
    cpu = Noise(77, tuple(range(256)), (1,) * 256)
    gpu = Noise(77, tuple(range(256)), (1,) * 256, device=torch.device("cuda"))
    a, b = (getattr(n, kind)(3, (3, 32, 32)).cpu() for n in (cpu, gpu))
    assert torch.equal(a, b)


def test_normals_are_normal():
    z = rows(range(200), [0] * 200).normal(0, (5000,)).numpy().ravel().astype(np.float64)
    assert stats.kstest(z, "norm").pvalue > 0.01
    assert abs(z.mean()) < 4 / np.sqrt(z.size)
    assert abs(z.var() - 1) < 4 * np.sqrt(2 / z.size)
    assert abs(stats.kurtosis(z)) < 4 * np.sqrt(24 / z.size)
    assert np.array_equal(z * 2**16, np.round(z * 2**16))  # the grid of the specification


def test_uniforms_are_uniform_and_open():
    u = rows(range(200), [0] * 200).uniform(0, (5000,)).numpy().ravel().astype(np.float64)
    assert stats.kstest(u, "uniform").pvalue > 0.01
    assert u.min() > 0
    assert u.max() < 1
    extreme = _to_uniform(np.array([[0, 2**32 - 1]]))
    assert extreme.tolist() == [[2.0**-24, 1 - 2.0**-24]]


def test_signs_are_fair():
    s = rows(range(200), [0] * 200).signs(0, (5000,)).numpy()
    assert set(np.unique(s)) == {-1.0, 1.0}
    assert stats.binomtest(int((s > 0).sum()), s.size).pvalue > 0.01


@pytest.mark.parametrize("high", [2, 10, 1000, 2**31, 2**32])
def test_integers_cover_their_range(high):
    n = rows(range(100), [0] * 100).integers(0, (1000,), high).numpy().ravel()
    assert n.min() >= 0
    assert n.max() < high
    bins = min(high, 50)
    counts = np.bincount((n * bins) // high, minlength=bins)
    assert stats.chisquare(counts).pvalue > 0.001


def test_integers_are_the_exact_scaled_words():
    """floor(word · high / 2³²), which would overflow if multiplied out in 64 bits."""
    noise = rows((1,), (2,))
    words = [int(w) for w in _words(np.array([[1, 2, 0]]), noise, 100)[0, :100]]
    for high in (3, 1000, 2**32 - 1, 2**32):
        got = noise.integers(0, (100,), high)[0].tolist()
        assert got == [w * high >> 32 for w in words]


@pytest.mark.parametrize("neighbours", ["image", "draw", "step", "stream", "element", "seed"])
def test_adjacent_addresses_are_uncorrelated(neighbours):
    n = 4000

    def take(image=0, draw=0, step=0, stream=Stream.PURIFY, seed=0):
        ids = tuple(range(10, 10 + n))
        noise = Noise(seed, tuple(i + image for i in ids), (draw,) * n, stream)
        return noise.normal(step, (16,)).numpy()

    a, b = (
        take(),
        {
            "image": lambda: take(image=1),
            "draw": lambda: take(draw=1),
            "step": lambda: take(step=1),
            "stream": lambda: take(stream=Stream.DIRECTION),
            "element": lambda: np.roll(take(), 1, axis=1),
            "seed": lambda: take(seed=1),
        }[neighbours](),
    )
    r = np.corrcoef(a.ravel(), b.ravel())[0, 1]
    assert abs(r) < 4 / np.sqrt(a.size)
    assert abs(np.corrcoef(a.ravel() ** 2, b.ravel() ** 2)[0, 1]) < 4 / np.sqrt(a.size)
    assert not np.array_equal(a, b)


@pytest.mark.parametrize("bit", [0, 1, 31, 32, 33, 47, 62, 63])
def test_every_bit_of_the_seed_counts(bit):
    a, b = (Noise(seed, (0,), (0,)).normal(0, (64,)) for seed in (0, 1 << bit))
    assert not torch.equal(a, b)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((2**64, (0,), (0,)), "seed must be in"),
        ((-1, (0,), (0,)), "seed must be in"),
        ((0, (2**32,), (0,)), "image ids must be in"),
        ((0, (0,), (-1,)), "draw ids must be in"),
        ((0, (0, 1), (0,)), "2 image ids but 1 draw ids"),
    ],
)
def test_addresses_that_would_wrap_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Noise(*arguments)


def test_steps_and_integers_out_of_range_are_refused():
    noise = rows((0,), (0,))
    with pytest.raises(ValueError, match="step must be in"):
        noise.normal(2**24, (1,))
    with pytest.raises(ValueError, match="high must be in"):
        noise.integers(0, (1,), 0)


def test_nothing_touches_the_global_generators():
    before = torch.get_rng_state()
    rows((0,), (0,)).normal(0, SHAPE)
    assert torch.equal(before, torch.get_rng_state())
