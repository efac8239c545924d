"""Foreign text on the page is text, and the page stays small whatever the report holds."""

import time
from dataclasses import replace

import numpy as np
import render_support as rs
from page_support import NEEDS_MODELS, audited, example_images, read, section, with_portraits

from purify_audit.render.html.attack import MOST_POINTS
from purify_audit.render.html.page import MOST_BYTES, html_report
from purify_audit.statistics.attack_rows import AttackSamples
from purify_audit.statistics.compression_rows import (
    AnchorRows,
    CompressionSamples,
    ProbeRows,
    VarianceRows,
)
from purify_audit.statistics.estimates import ImageVerdict

SCRIPT = '"><script>alert(1)</script><img src=x onerror=alert(1)>'
HOSTILE = f"{SCRIPT}{{{{7*7}}}}{{% raw %}}\x00\x1b[31m\u202e</style></title>&lt;"


class TestForeignText:
    pytestmark = NEEDS_MODELS

    def test_every_free_text_is_escaped(self):
        report, samples, attacks = audited()
        found = rs.finding(HOSTILE, "error", HOSTILE, HOSTILE)
        found = found.model_copy(update={"evidence": {HOSTILE: [HOSTILE, HOSTILE]}})
        card = report.checkpoint.card.model_copy(update={"name": HOSTILE})
        model = report.checkpoint.model_copy(
            update={"source": HOSTILE, "sha256": HOSTILE, "card": card}
        )
        info = report.attack
        images = tuple(v.model_copy(update={"rates": {HOSTILE: 0.5}}) for v in info.images)
        fuzzy = tuple(f.model_copy(update={"attack": HOSTILE}) for f in info.fuzziness)
        changes = {
            "gradients": {HOSTILE: 1.0},
            "images": images,
            "fuzziness": fuzzy,
            "correlations": {HOSTILE: info.correlations["sign"]},
        }
        run = report.run.model_copy(
            update={"command": HOSTILE, "started": HOSTILE, "rows_file": HOSTILE}
        )
        hostile = report.model_copy(
            update={
                "tool_version": HOSTILE,
                "noise_spec": HOSTILE,
                "environment": {HOSTILE: HOSTILE},
                "checkpoint": model,
                "classifier": model,
                "data": report.data.model_copy(update={"source": HOSTILE, "digest": HOSTILE}),
                "estimates": tuple(
                    e.model_copy(update=dict.fromkeys(("metric", "probe", "method"), HOSTILE))
                    if n % 2
                    else e.model_copy(update={"probe": HOSTILE})
                    for n, e in enumerate(report.estimates)
                ),
                "quantiles": tuple(
                    q.model_copy(update={"probe": HOSTILE}) for q in report.quantiles
                ),
                "findings": (found,),
                "citations": tuple(
                    c.model_copy(update={"used_for": HOSTILE, "reference": HOSTILE})
                    for c in report.citations
                ),
                "attack": info.model_copy(update=changes),
                "run": run,
            }
        )
        bad = dict.fromkeys(("requirement", "sentence", "metric", "probe", "waived"), HOSTILE)
        rules = [rs.result(HOSTILE, decision, **bad) for decision in ("pass", "fail")]
        judged = rs.judgement(*rules, verdict="fail", policy=HOSTILE, notes=(HOSTILE,))
        scored = tuple(replace(s, name=HOSTILE) if s.name == "bpda" else s for s in attacks.scored)
        attacks = replace(with_portraits(attacks), scored=scored)
        for rows in (samples, None):
            page = read(html_report(hostile, judged, rows, attacks))
            assert not any(tag == "script" for tag, _ in page.elements)
            assert not any("onerror" in attrs for _, attrs in page.elements)
            assert "{{7*7}}" in page.page
            assert not any(c in page.page for c in "\x00\x1b\u202e")
            assert page.page.count("<style>") == page.page.count("</style>") == 1
            assert page.text.count("alert(1)") > 30


class TestSize:
    def test_ten_thousand_images(self):
        n, draws, directions = 10_000, 2, 8
        probes = 2
        image, draw, probe, direction = (
            a.ravel()
            for a in np.meshgrid(
                np.arange(n), np.arange(draws), np.arange(probes), np.arange(directions),
                indexing="ij",
            )
        )  # fmt: skip
        rate = 0.5 + 0.1 * np.sin(image) + 0.5 * probe
        ones = np.ones(len(image))
        columns = dict.fromkeys(
            ("delta_l2", "delta_linf", "unaligned_l2", "unaligned_linf", "moved_l2", "moved_linf"),
            ones,
        )
        samples = CompressionSamples(
            ProbeRows(
                image=image, draw=draw, probe=probe, radius=0 * image, direction=direction,
                change_l2=rate, change_linf=rate, **columns,
            ),
            AnchorRows(*(np.zeros(0) for _ in range(6))),
            VarianceRows(*(np.zeros(0) for _ in range(5))),
        )  # fmt: skip
        names = ("sign", "lowfreq", "power", "attack")
        images = tuple(
            ImageVerdict(
                image=k, label=k % 10, margin=1.0, robust=float(k % 3 > 0),
                fooling_radius=None if k % 3 == 0 else 0.01 + (k % 97) / 100,
                rates=dict.fromkeys(names, 0.1 + (k % 89) / 89),
            )
            for k in range(n)
        )  # fmt: skip
        report = rs.report(attack=rs.NOTHING_FOUND.model_copy(update={"images": images}))
        zero = np.zeros((n, 1))
        attacks = AttackSamples(
            np.arange(n), zero[:, 0], zero, zero, zero, zero[:, 0], scored=(),
            example_images=example_images(16, (3, 224, 224)),
        )  # fmt: skip
        start = time.process_time()
        page = html_report(report, rs.many_rules(), samples, attacks)
        assert time.process_time() - start < 6.0
        assert len(page.encode()) < MOST_BYTES
        told = read(page)
        assert "Images of 224 pixels are shown at" in section(told, "fooling-radii")
        assert f"{MOST_POINTS} of them are drawn" in section(told, "fooling-radii")
        assert f"median 0.500, {n:,} images" in section(told, "images")

    def test_whatever_the_report(self):
        long = "<\x01\u202e&" * 20_000
        estimates = tuple(
            rs.estimate(f"{n}{long}", probe=f"{n}{long}", method=long) for n in range(600)
        )
        findings = tuple(rs.finding(long, "error", long, long) for _ in range(200))
        rules = [
            rs.result(long, "fail", requirement=long, sentence=long, waived=long)
            for _ in range(300)
        ]
        page = html_report(
            rs.report(
                estimates=estimates, findings=findings, checkpoint=rs.model(long[:200], long),
                environment={f"{n}{long}": long for n in range(100)}, run=rs.started(long),
            ),
            rs.judgement(*rules, verdict="fail", policy=long, notes=(long,) * 100),
        )  # fmt: skip
        assert len(page.encode()) < MOST_BYTES
        assert "FAIL" in section(read(page), "verdict")
