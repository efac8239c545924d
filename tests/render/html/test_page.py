"""The page: well-formed, self-contained, in order, and everything of the report on it."""

import base64
import hashlib
import re
from dataclasses import replace

import numpy as np
import pytest
import render_support as rs
from page_support import (
    EPS,
    IMAGES,
    NEEDS_MODELS,
    audited,
    ids,
    read,
    section,
    with_portraits,
)

from purify_audit.render.html.page import html_report

SECTIONS = ["verdict", "untested", "findings", "estimates", "images", "randomness", "geometry"]


@pytest.fixture(scope="session")
def small():
    return audited()


@pytest.fixture(scope="session")
def full(small):
    report, samples, attacks = small
    return read(html_report(report, rs.EVERY, samples, with_portraits(attacks)))


class TestPage:
    pytestmark = NEEDS_MODELS

    def test_sections_stand_in_order(self, full):
        sections = [attrs["id"] for tag, attrs in full.elements if tag == "section"]
        assert sections == [
            *SECTIONS[:5], "radii", *SECTIONS[5:], "attack", "soundness", "fooling-radii",
            "reproduce", "sources",
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

    def test_checks_of_the_attack_are_reported(self, full):
        told = section(full, "soundness")
        for code in ("PA301", "PA302", "PA303", "PA304", "PA305", "PA306", "PA307", "PA308"):
            assert code in told
        for name in ("bpda", "square", "unbounded", "predicted"):
            assert name in told
        assert "cosine between the gradients of two draws" in told

    def test_matrix_and_inflation(self, small, full):
        told = section(full, "attack")
        for words in ("one held-out draw", "mean of 3 held-out draws", "vote of 3 held-out draws"):
            assert told.count(words) == len(EPS)
        assert section(full, "estimates").count("an inflation by randomness of") == len(EPS)

    def test_fooling_radius_and_rank_correlation(self, small, full):
        value = small[0].attack.correlations["sign"].value
        assert f"Spearman {value:.2f}".replace("-", "−") in section(full, "fooling-radii")
        assert f"of {IMAGES} images resist" in section(full, "fooling-radii")

    def test_reproduction(self, small, full):
        report, told = small[0], section(full, "reproduce")
        assert report.run.command in told
        assert f"purify-audit replay small.json --image {report.data.ids[0]}" in told
        assert "purify-audit reproduce small.json" in told
        for digest in (
            report.checkpoint.sha256, report.data.digest, report.plan_digest, report.rows_sha256,
            report.attacks_sha256, report.run.body_sha256,
        ):  # fmt: skip
            assert digest in told
        assert report.noise_spec in told

    def test_without_rows_quantiles_and_what_is_missing(self, small):
        page = read(html_report(small[0]))
        assert "The file of raw rows was not found" in section(page, "images")
        assert "Whiskers 5 to 95%" in section(page, "images")
        assert "The file of attacked images was not found" in section(page, "soundness")
        assert "The file of attacked images was not found" in section(page, "fooling-radii")

    def test_attacks_without_example_images(self, small):
        report, samples, attacks = small
        page = read(html_report(report, None, samples, replace(attacks, example_images=None)))
        assert "has no example images" in section(page, "fooling-radii")

    def test_rows_that_are_not_finite_are_told(self, small):
        report, samples, _ = small
        change = samples.probes.change_l2.copy()
        change[samples.probes.image == report.data.ids[0]] = np.nan
        broken = replace(samples, probes=replace(samples.probes, change_l2=change))
        told = section(read(html_report(report, None, broken)), "images")
        assert f"{IMAGES - 1} images, 1 not finite: not drawn" in told

    def test_perturbations_that_clipping_took_away_are_left_out(self, small):
        report, samples, _ = small
        gone = (samples.probes.image == report.data.ids[0]) & (samples.probes.direction < 1)
        columns = {
            name: np.where(gone, 0.0, getattr(samples.probes, name))
            for name in ("delta_l2", "change_l2", "delta_linf", "change_linf")
        }
        told = replace(samples, probes=replace(samples.probes, **columns))
        words = section(read(html_report(report, None, told)), "images")
        assert "not finite" not in words
        assert f"sign median 1.000, {IMAGES} images" in words

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
        assert "predicted 0.1 10 100.0% 0.0% not stronger" in told
        assert "predicted 0.2 10 100.0% 100.0% not tested at this radius" in told
        assert "unbounded 0.5 10 100.0% 0.0% fools almost all" in told

    def test_attacks_that_beat_the_main_one(self, small):
        report, _, attacks = small
        found = tuple(
            rs.finding(code, "error").model_copy(update={"evidence": evidence})
            for code, evidence in (("PA306", {"attack": "bpda"}), ("PA305", {}))
        )
        told = report.model_copy(update={"findings": found})
        page = section(read(html_report(told, None, None, attacks)), "soundness")
        assert page.count("stronger (PA306)") == 1
        assert "fools too few (PA305)" in page

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
