"""A real browser opens the page: axe, the network, the console, a phone, the keyboard, print."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import render_support as rs
from page_support import NEEDS_MODELS, audited, with_portraits

from purify_audit.render.html.page import html_report

WEB = Path(__file__).parents[2] / "web"
MODULES = Path(os.environ.get("PURIFY_AUDIT_NODE_MODULES") or WEB / "node_modules")
CHROMIUM = os.environ.get("PURIFY_AUDIT_CHROMIUM") or shutil.which("chromium")
LACKS = [
    what
    for what, there in {
        "node": shutil.which("node"),
        "Chromium": CHROMIUM and Path(CHROMIUM).is_file(),
        "axe-core": (MODULES / "axe-core").is_dir(),
        "puppeteer-core": (MODULES / "puppeteer-core").is_dir(),
    }.items()
    if not there
]
pytestmark = [
    pytest.mark.web,
    pytest.mark.skipif(bool(LACKS), reason=f"not here: {', '.join(LACKS)}"),
    NEEDS_MODELS,
]
PAGES = ("full", "bare", "hostile")


@pytest.fixture(scope="module", params=PAGES)
def seen(request, tmp_path_factory):
    """What the browser says of a page with everything, with nothing beside it, or of foreign text.

    Screenshots go to the folder that PURIFY_AUDIT_SCREENSHOTS names, if it does.
    """
    report, samples, attacks = audited()
    page = {
        "full": lambda: html_report(report, rs.EVERY, samples, with_portraits(attacks)),
        "bare": lambda: html_report(rs.report(attacked=False)),
        "hostile": lambda: html_report(rs.hostile_report(), rs.hostile_judgement()),
    }[request.param]()
    file = tmp_path_factory.mktemp("page") / f"{request.param}.html"
    file.write_text(page, encoding="utf-8")
    pictures = os.environ.get("PURIFY_AUDIT_SCREENSHOTS")
    return check(file, Path(pictures) / request.param if pictures else None)


def check(file, pictures=None):
    command = ["node", WEB / "check.mjs", file, *([pictures] if pictures else [])]
    where = {"PURIFY_AUDIT_NODE_MODULES": str(MODULES), "PURIFY_AUDIT_CHROMIUM": str(CHROMIUM)}
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=120, env=os.environ | where
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_no_console_errors(seen):
    assert seen["console"] == []


def test_no_requests(seen):
    assert seen["requests"] == []


def test_no_grave_accessibility_findings(seen):
    for view in seen["views"].values():
        assert view["passed"] > 20
        assert [v for v in view["violations"] if v["impact"] in ("serious", "critical")] == []


def test_no_horizontal_scrolling(seen):
    widths = {name: v["client_width"] for name, v in seen["views"].items()}
    assert widths == {"phone-light": 360, "phone-dark": 360, "desk-light": 1280, "desk-dark": 1280}
    assert {name: v["scroll_width"] for name, v in seen["views"].items()} == widths


def test_texts_of_plots_are_large_enough_and_do_not_overlap(seen):
    for view in seen["views"].values():
        assert view["smallest_text"] >= 11
        assert view["overlapping_texts"] == []


def test_light_and_dark_differ(seen):
    assert seen["views"]["desk-light"]["background"] == "rgb(255, 255, 255)"
    assert seen["views"]["desk-dark"]["background"] == "rgb(19, 22, 26)"


def test_pictures_load(seen):
    assert all(v["unloaded_images"] == 0 for v in seen["views"].values())


def test_the_keyboard_reaches_everything_and_shows_where_it_is(seen):
    names = [at["name"] for at in seen["tabs"]]
    assert names[0] == "a.skip"
    assert "summary." in names
    assert names.count("div.scroll") == seen["regions"]
    assert all(at["visible"] for at in seen["tabs"])


def test_print_opens_all_details(seen):
    assert seen["print"]["details"] >= 1
    assert seen["print"]["hidden"] == 0


def test_the_check_finds_faults(tmp_path):
    """The checks above would be worth nothing if they could not fail."""
    file = tmp_path / "faulty.html"
    wide = '<img src="nowhere.png"><div style="width:3000px">x</div><input>'
    script = "<script>console.error('loud')</script>"
    svg = (
        '<svg class="plot" viewBox="0 0 340 50" width="340"><text x="9" y="20" font-size="5">a b'
        '</text><text x="9" y="20" font-size="5">c d</text></svg>'
    )
    file.write_text(f"<!doctype html><title>x</title>{wide}{script}{svg}", encoding="utf-8")
    found = check(file)
    assert "loud" in found["console"]
    assert any(url.endswith("nowhere.png") for url in found["requests"])
    view = found["views"]["phone-light"]
    assert view["scroll_width"] > 360
    assert view["smallest_text"] == pytest.approx(5)
    assert view["overlapping_texts"] == ["a b | c d"]
    assert view["unloaded_images"] == 1
    assert {"serious", "critical"} & {v["impact"] for v in view["violations"]}
