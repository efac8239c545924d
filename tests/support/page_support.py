"""One small audit with an attack, made once; pages, and how a test reads them."""

import contextlib
import functools
import io
import re
import sys
import tempfile
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import render_support as rs

from purify_audit import cli
from purify_audit.render.html.page import html_report
from purify_audit.report.schema import Report, read_report
from purify_audit.statistics.attack_rows import AttackSamples, ExampleImages, load_attacks
from purify_audit.statistics.compression_rows import CompressionSamples, load_samples

CLASSIFIER = Path(__file__).parents[2] / "models" / "digits-classifier.safetensors"
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


def example_images(count=4, shape=(1, 8, 8), seed=5) -> ExampleImages:
    """Noise in place of images, half of it the worst."""
    made = np.random.default_rng(seed).uniform(0, 1, (4, count, *shape)).astype(np.float32)
    return ExampleImages(
        ids=np.arange(count) + 500,
        worst=np.arange(count) < count // 2,
        clean=made[0],
        attacked=made[1],
        anchor=made[2],
        purified=made[3],
        predicted=np.arange(count) % 10,
    )


def with_portraits(attacks: AttackSamples, **settings) -> AttackSamples:
    return replace(attacks, example_images=example_images(**settings))


VOID = {"meta", "img", "br", "link", "input", "hr"}


class Reader(HTMLParser):
    """Checks that tags balance, and keeps elements with their attributes, and the text."""

    def __init__(self):
        super().__init__()
        self.open, self.elements, self.words = [], [], []

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"{tag} repeats an attribute: {names}"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> closes another"

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style",):
            self.words.append(data)


def read(page):
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == [], f"never closed: {reader.open}"
    text = " ".join(" ".join(reader.words).split())
    return SimpleNamespace(elements=reader.elements, text=text, page=page)


def ids(page):
    return [attrs["id"] for _, attrs in page.elements if "id" in attrs]


def section(page, name):
    """The text of one section."""
    found = re.search(rf'<section id="{name}".*?</section>', page.page, re.S)
    return read(found[0]).text


def written(attacked=True, judgement=None, **changes):
    return read(html_report(rs.report(attacked, **changes), judgement))
