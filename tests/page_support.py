"""One small audit with an attack, made once, and pages of it."""

import contextlib
import functools
import io
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from purify_audit import cli
from purify_audit.attack_samples import AttackSamples, Portraits, load_attacks
from purify_audit.report.schema import Report, read_report
from purify_audit.samples import CompressionSamples, load_samples

CLASSIFIER = Path(__file__).parents[1] / "models" / "digits-classifier.safetensors"
NEEDS_MODELS = pytest.mark.skipif(
    not CLASSIFIER.is_file(), reason="the shipped models are not here"
)
EPS = (0.1, 0.2)
IMAGES = 10


@functools.cache
def audited() -> tuple[Report, CompressionSamples, AttackSamples]:
    """A randomised purifier, probed and attacked at two radii."""
    settings = {"images": IMAGES, "steps": 2, "eps": "0.1,0.2", "microbatch": 8, "held-out": 3}
    given = [text for key, value in settings.items() for text in (f"--{key}", str(value))]
    arguments = ["verify", "gaussian-noise:sigma=0.1", "--attack", "--quiet", *given]
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        out = Path(folder) / "small.json"
        patch.setattr(sys, "argv", ["purify-audit", *arguments, "--out", str(out)])
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
            cli.main()
        return (
            read_report(out),
            load_samples(out.with_name("small.rows.safetensors")),
            load_attacks(out.with_name("small.attack.safetensors")),
        )


def portraits(count=4, shape=(1, 8, 8), seed=5) -> Portraits:
    """Noise in place of images, half of it the worst."""
    made = np.random.default_rng(seed).uniform(0, 1, (4, count, *shape)).astype(np.float32)
    return Portraits(
        ids=np.arange(count) + 500,
        worst=np.arange(count) < count // 2,
        clean=made[0],
        attacked=made[1],
        anchor=made[2],
        purified=made[3],
        predicted=np.arange(count) % 10,
    )


def with_portraits(attacks: AttackSamples, **settings) -> AttackSamples:
    return replace(attacks, portraits=portraits(**settings))
