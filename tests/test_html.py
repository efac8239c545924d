"""The page: well-formed, self-contained, escaped, small, in order, honest on what is missing."""

import base64
import hashlib
import re
import time
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
import render_support as rs
from page_support import EPS, IMAGES, NEEDS_MODELS, audited, portraits, with_portraits

from purify_audit.attack_samples import AttackSamples
from purify_audit.estimates import ImageVerdict, Quantiles
from purify_audit.render.html import MOST_BYTES, html_report
from purify_audit.render.html_attack import MOST_POINTS
from purify_audit.render.pictures import data_uri, gallery
from purify_audit.samples import AnchorRows, CompressionSamples, ProbeRows, VarianceRows

VOID = {"meta", "img", "br", "link", "input", "hr"}
SCRIPT = '"><script>alert(1)</script><img src=x onerror=alert(1)>'
HOSTILE = f"{SCRIPT}{{{{7*7}}}}{{% raw %}}\x00\x1b[31m\u202e</style></title>&lt;"
SECTIONS = ["verdict", "untested", "findings", "estimates", "images", "randomness", "geometry"]


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


@pytest.fixture(scope="session")
def small():
    return audited()


@pytest.fixture(scope="session")
def full(small):
    report, samples, attacks = small
    return read(html_report(report, rs.EVERY, samples, with_portraits(attacks)))


def written(attacked=True, judgement=None, **changes):
    return read(html_report(rs.report(attacked, **changes), judgement))


class TestPage:
    pytestmark = NEEDS_MODELS

    def test_sections_stand_in_order(self, full):
        sections = [attrs["id"] for tag, attrs in full.elements if tag == "section"]
        assert sections == [
            *SECTIONS[:5], "radii", *SECTIONS[5:], "attack", "soundness", "fates", "reproduce",
            "sources",
        ]  # fmt: skip

    def test_ids_are_unique_and_links_lead_somewhere(self, full):
        assert len(ids(full)) == len(set(ids(full)))
        links = [attrs["href"] for tag, attrs in full.elements if tag == "a"]
        assert links
        assert {link.removeprefix("#") for link in links} <= set(ids(full))
        named = [a["aria-labelledby"] for _, a in full.elements if "aria-labelledby" in a]
        assert {i for names in named for i in names.split()} <= set(ids(full))

    def test_nothing_is_asked_of_anybody(self, full):
        for tag, attrs in full.elements:
            assert tag not in {"script", "link", "iframe", "object", "embed", "base", "form"}
            assert not any(name.startswith("on") or name == "style" for name in attrs)
            for name in ("src", "href", "srcset", "action", "data", "xlink:href"):
                assert attrs.get(name, "#").startswith(("#", "data:image/png;base64,"))
        assert "url(" not in full.page
        assert "@import" not in full.page
        assert "http://" not in full.page
        assert "https://" not in full.page

    def test_the_policy_allows_its_style_and_no_other(self, full):
        (policy,) = [a["content"] for t, a in full.elements if t == "meta" and "http-equiv" in a]
        (style,) = re.findall(r"<style>(.*?)</style>", full.page, re.S)
        digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
        rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
        assert rules == {
            "default-src": "'none'",
            "style-src": f"'sha256-{digest}'",
            "img-src": "data:",
            "base-uri": "'none'",
            "form-action": "'none'",
        }

    def test_the_same_input_gives_the_same_bytes(self, small):
        report, samples, attacks = small
        pages = {html_report(report, rs.EVERY, samples, with_portraits(attacks)) for _ in range(2)}
        assert len(pages) == 1

    def test_wide_tables_scroll_by_themselves_and_by_keyboard(self, full):
        regions = [a for _, a in full.elements if a.get("class") == "scroll"]
        assert len(regions) == sum(tag == "table" for tag, _ in full.elements)
        assert all(a["tabindex"] == "0" and a["role"] == "region" for a in regions)

    def test_every_picture_is_told(self, full):
        pictures = [a for tag, a in full.elements if tag == "img"]
        assert len(pictures) == 4 * 5
        assert len({a["alt"] for a in pictures}) == len(pictures)

    def test_every_plot_has_title_and_description(self, full):
        plots = [a for tag, a in full.elements if tag == "svg"]
        assert len(plots) >= 12
        assert all(a["role"] == "img" and a["aria-labelledby"] for a in plots)

    def test_every_estimate_is_written(self, small, full):
        report, table = small[0], section(full, "estimates")
        for e in report.estimates:
            assert e.metric in table
        assert table.count("clopper-pearson on images") == sum(
            e.method == "clopper-pearson on images" for e in report.estimates
        )

    def test_certification_is_told(self, full):
        told = section(full, "soundness")
        for code in ("PA301", "PA302", "PA303", "PA304", "PA305", "PA306", "PA307", "PA308"):
            assert code in told
        for name in ("bpda", "square", "unbounded", "predicted"):
            assert name in told
        assert "cosine between the gradients of two draws" in told

    def test_matrix_and_inflation(self, small, full):
        told = section(full, "attack")
        for words in ("one draw it never saw", "mean of 3 held-out draws", "vote of 3 held-out"):
            assert told.count(words) == len(EPS)
        assert told.count("randomness inflates robust accuracy by") == len(EPS)

    def test_fate_and_rank_correlation(self, small, full):
        value = small[0].attack.correlations["sign"].value
        assert f"Spearman {value:.2f}".replace("-", "−") in section(full, "fates")
        assert f"of {IMAGES} images stand" in section(full, "fates")

    def test_reproduction(self, small, full):
        report, told = small[0], section(full, "reproduce")
        assert report.run.command in told
        assert f"purify-audit replay small.json --image {report.data.ids[0]}" in told
        assert "purify-audit verify small.json" in told
        for digest in (
            report.checkpoint.sha256, report.data.digest, report.plan_digest, report.rows_sha256,
            report.attacks_sha256, report.run.body_sha256,
        ):  # fmt: skip
            assert digest in told
        assert report.noise_spec in told

    def test_without_rows_quantiles_and_what_is_missing(self, small):
        page = read(html_report(small[0]))
        assert "rows of the report are not beside it" in section(page, "images")
        assert "Whiskers 5 to 95%" in section(page, "images")
        assert "attacked images are not beside the report" in section(page, "soundness")
        assert "attacked images are not beside the report" in section(page, "fates")

    def test_old_attacks_without_portraits(self, small):
        report, samples, attacks = small
        page = read(html_report(report, None, samples, replace(attacks, portraits=None)))
        assert "has no portraits" in section(page, "fates")

    def test_rows_that_are_not_finite_are_told(self, small):
        report, samples, _ = small
        change = samples.probes.change_l2.copy()
        change[samples.probes.image == report.data.ids[0]] = np.nan
        broken = replace(samples, probes=replace(samples.probes, change_l2=change))
        told = section(read(html_report(report, None, broken)), "images")
        assert f"{IMAGES - 1} images, 1 not finite: not drawn" in told

    def test_fewer_certified_images_are_told(self, small):
        report, _, attacks = small
        scored = tuple(
            replace(s, aligned=s.aligned[:4]) if s.name in ("bpda", "square") else s
            for s in attacks.scored
        )
        page = read(html_report(report, None, None, replace(attacks, scored=scored)))
        assert "first images only: bpda on 4, square on 4 of 10" in section(page, "untested")

    def test_attacks_are_compared_at_one_radius(self, small):
        report, _, attacks = small
        right = np.broadcast_to(attacks.labels[:, None], attacks.scored[0].aligned.shape)
        wrong = np.full_like(right, -1)
        scored = tuple(
            replace(s, aligned=wrong if (s.name, s.eps) == ("aligned", EPS[0]) else right)
            for s in attacks.scored
        )
        page = read(html_report(report, None, None, replace(attacks, scored=scored)))
        told = section(page, "soundness")
        assert "predicted 0.1 10 100.0% 0.0% does not beat it" in told
        assert "predicted 0.2 10 100.0% 100.0% not tested at this radius" in told
        assert "unbounded 0.5 10 100.0% 0.0% breaks nearly everything" in told

    def test_attacks_that_beat_the_main_one(self, small):
        report, _, attacks = small
        found = tuple(
            rs.finding(code, "error").model_copy(update={"evidence": evidence})
            for code, evidence in (("PA306", {"attack": "bpda"}), ("PA305", {}))
        )
        told = report.model_copy(update={"findings": found})
        page = section(read(html_report(told, None, None, attacks)), "soundness")
        assert page.count("beats it (PA306)") == 1
        assert "leaves too much (PA305)" in page

    def test_checks_done_before_the_run_ended(self, small):
        report, _, attacks = small
        report = report.model_copy(update={"findings": (rs.finding("PA311", "error"),)})
        begun = section(read(html_report(report, None, None, attacks)), "soundness")
        assert "passed PA303" in begun
        assert "unknown PA306" in begun
        only = tuple(s for s in attacks.scored if s.name in ("aligned", "predicted"))
        before = read(html_report(report, None, None, replace(attacks, scored=only)))
        assert "unknown PA303" in section(before, "soundness")
        assert "not tested: the run ended early" in section(before, "soundness")

    def test_every_free_text_is_escaped(self, small):
        report, samples, attacks = small
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


class TestVerdict:
    @pytest.mark.parametrize("word", ["PASS", "FAIL", "INCONCLUSIVE"])
    def test_the_decision_is_a_word(self, word):
        page = written(judgement=rs.VERDICTS[word.lower()])
        assert re.match(rf"Verdict \S {word} ", section(page, "verdict"))
        assert f"<title>{word} · " in page.page

    def test_every_rule_with_its_numbers(self):
        told = section(written(judgement=rs.EVERY), "verdict")
        assert "6 rules: 3 failed, 2 undecided, 1 passed, 1 of them waived." in told
        assert "Waived: known since May" in told
        assert told.count("0.500 [0.400, 0.625]") == 6
        assert told.count("0.5, 0.95 interval 0.4 to 0.625 from 32 images.") == 6
        assert told.count("warning only") == 2

    def test_regressions_are_in_points(self):
        rule = rs.result(
            metric="randomness_inflation", value=-0.0625, lower=-0.125, upper=0.0, baseline=0.5,
            p_value=0.03, confidence=0.95,
        )  # fmt: skip
        told = section(written(judgement=rs.judgement(rule)), "verdict")
        assert "−6.2 points [−12.5, 0.0]" in told
        assert "Baseline 0.5. McNemar p = 0.03." in told

    def test_notes_are_shown(self):
        page = written(judgement=rs.judgement(rs.PASS, notes=("The waiver is not used.",)))
        assert "The waiver is not used." in section(page, "verdict")

    def test_without_a_judgement(self):
        told = section(written(), "verdict")
        assert "NOT JUDGED" in told
        assert "No policy was held against this report." in told
        assert "purify-audit gate report.json --policy POLICY.toml" in told

    def test_partial_is_told_in_the_banner_and_below(self):
        page = written(status="partial", judgement=rs.VERDICTS["inconclusive"])
        assert "PARTIAL." in section(page, "verdict")
        assert "ended early" in section(page, "untested")

    def test_too_many_rules_keep_those_that_fail(self):
        rules = [rs.result(f"rule-{n}") for n in range(400)]
        told = section(written(judgement=rs.judgement(*rules, rs.FAIL, verdict="fail")), "verdict")
        assert "stands" in told
        assert "251 more rules are not shown" in told


class TestWhatIsMissing:
    def test_nothing_proves_robustness(self):
        for attacked in (True, False):
            assert "No measurement proves robustness" in section(written(attacked), "untested")

    def test_no_attack(self):
        page = written(attacked=False)
        assert "robust accuracy was not measured" in section(page, "untested")
        assert "robust accuracy was not measured" in section(page, "attack")
        assert "soundness" not in ids(page)

    def test_no_fresh_attack(self):
        estimates = tuple(e for e in rs.report().estimates if e.probe != "fresh")
        told = section(written(estimates=estimates), "untested")
        assert "so inflation is unknown" in told

    def test_no_power_probe_and_one_draw(self):
        plan = rs.report().plan
        plan = plan.model_copy(update={"draws": 1, "probes": plan.probes[:1]})
        told = section(written(plan=plan), "untested")
        assert "stretched most was not searched for" in told
        assert "One draw only" in told

    def test_nothing_at_all(self):
        page = written(attacked=False, estimates=(), findings=(), run=None)
        assert "Nothing was estimated." in section(page, "estimates")
        assert "No compression rate was measured." in section(page, "images")
        assert "was not measured" in section(page, "randomness")
        assert "No distance was measured." in section(page, "geometry")
        assert "No findings" in section(page, "findings")
        assert "was not recorded" in section(page, "reproduce")

    def test_foretold_only(self):
        plan = rs.report().plan
        attack = plan.attack.model_copy(update={"predict_only": True})
        page = written(plan=plan.model_copy(update={"attack": attack}))
        assert "was not attacked" in section(page, "attack")
        assert "PA303 the defence, run again, gives the margins that the attack saw Robust" in (
            section(page, "soundness")
        )

    @pytest.mark.parametrize(
        ("changes", "findings", "states"),
        [
            ({}, (), {"PA301": "not run", "PA303": "passed", "PA310": "passed"}),
            ({}, ("PA311",), {"PA303": "unknown", "PA311": "fired"}),
            ({}, ("PA307",), {"PA307": "fired", "PA304": "passed"}),
        ],
    )
    def test_checks_that_ran_and_that_did_not(self, changes, findings, states):
        told = tuple(rs.finding(code, "error", "It fired.") for code in findings)
        page = section(written(findings=told, **changes), "soundness")
        for code, state in states.items():
            assert f"{state} {code} " in page

    def test_a_gradient_that_was_not_followed_is_not_enforced(self):
        plan = rs.report().plan
        attack = plan.attack.model_copy(update={"gradient": "bpda"})
        info = rs.NOTHING_FOUND.model_copy(update={"gradients": {"unrolled_error": 0.5}})
        page = written(plan=plan.model_copy(update={"attack": attack}), attack=info)
        assert "not enforced PA301" in section(page, "soundness")

    def test_quantiles_too_large_to_draw_are_told(self):
        huge = Quantiles(
            metric="compression_rate", norm="l2", probe="sign", quantiles=(0, 1, 2, 3, 1e300),
            n_images=9,
        )  # fmt: skip
        told = section(written(quantiles=(huge,)), "images")
        assert "median 2.000, 0.000 to 1e+300" in told


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
                falls_at=None if k % 3 == 0 else 0.01 + (k % 97) / 100,
                rates=dict.fromkeys(names, 0.1 + (k % 89) / 89),
            )
            for k in range(n)
        )  # fmt: skip
        report = rs.report(attack=rs.NOTHING_FOUND.model_copy(update={"images": images}))
        zero = np.zeros((n, 1))
        attacks = AttackSamples(
            np.arange(n), zero[:, 0], zero, zero, zero, zero[:, 0], scored=(),
            portraits=portraits(16, (3, 224, 224)),
        )  # fmt: skip
        start = time.process_time()
        page = html_report(report, rs.many_rules(), samples, attacks)
        assert time.process_time() - start < 6.0
        assert len(page.encode()) < MOST_BYTES
        told = read(page)
        assert "Images of 224 pixels are shown at" in section(told, "fates")
        assert f"{MOST_POINTS} of them are drawn" in section(told, "fates")
        assert f"median 0.500, {n} images" in section(told, "images")

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


class TestPictures:
    def decode(self, uri):
        import io

        from PIL import Image

        raw = base64.b64decode(uri.removeprefix("data:image/png;base64,"))
        return np.asarray(Image.open(io.BytesIO(raw)))

    def test_pixels_come_back(self):
        pixels = np.arange(12, dtype=np.float32).reshape(3, 2, 2) / 255
        back = self.decode(data_uri(pixels, 224))
        assert back.transpose(2, 0, 1).tolist() == np.arange(12).reshape(3, 2, 2).tolist()

    def test_grey_and_other_channels(self):
        grey = self.decode(data_uri(np.full((1, 2, 2), 0.2), 224))
        assert grey.tolist() == [[51, 51], [51, 51]]
        four = self.decode(data_uri(np.array([0.0, 0.4, 0.4, 0.0])[:, None, None], 224))
        assert four.tolist() == [[51]]

    def test_what_is_outside_is_cut_and_what_is_no_number_is_grey(self):
        pixels = np.array([[[-1.0, 2.0, np.nan, np.inf]]])
        assert self.decode(data_uri(pixels, 224)).tolist() == [[0, 255, 128, 128]]

    def test_the_difference_is_ten_times_purified_minus_clean(self):
        made = portraits(1, (1, 1, 2))
        clean = np.array([[[[0.5, 0.5]]]], np.float32)
        purified = np.array([[[[0.52, 0.44]]]], np.float32)
        (strip,) = gallery(replace(made, clean=clean, purified=purified), 10**6).strips
        assert strip.tiles[-1].what == "difference"
        assert self.decode(strip.tiles[-1].uri).tolist() == [[round(255 * 0.7), 0]]

    def test_smaller_then_fewer_within_the_budget(self):
        made = portraits(8, (3, 64, 64))
        whole = gallery(made, 10**7)
        assert (whole.shown_side, whole.left_out) == (64, 0)
        smaller = gallery(made, 300_000)
        assert smaller.shown_side < 64
        assert smaller.left_out == 0
        few = gallery(made, 20_000)
        assert few.left_out > 0
        assert {s.worst for s in few.strips} == {True, False}
        for g in (smaller, few):
            assert sum(len(t.uri) for s in g.strips for t in s.tiles) <= 300_000
