"""The site builds without a warning, asks nothing of others, and leaves nothing undocumented."""

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import typer.main

from purify_audit.cli import app
from purify_audit.cli.app import EXIT_BROKEN, EXIT_CODES, EXIT_FAIL, EXIT_INCONCLUSIVE
from purify_audit.core.errors import InputError, PurifyAuditError
from purify_audit.core.findings import CODES
from purify_audit.gate.judgement import Judgement, RuleResult
from purify_audit.gate.policy import Policy, Rule, Waiver
from purify_audit.report.schema import Report
from purify_audit.spec.attack_plan import AttackPlan
from purify_audit.spec.audit_plan import AuditPlan
from purify_audit.statistics.estimates import Estimate
from purify_audit.statistics.metrics import METRICS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(page.relative_to(DOCS).as_posix() for page in DOCS.glob("**/*.md"))
LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}
FETCHED = ("stylesheet", "preload", "preconnect", "dns-prefetch", "icon", "modulepreload")


def text(name):
    return (DOCS / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site."""
    pytest.importorskip("mkdocs", reason="the site is built by mkdocs (pip install -e '.[dev]')")
    pytest.importorskip("material", reason="the site's theme is mkdocs-material")
    folder = tmp_path_factory.mktemp("site")
    ended = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return folder


class Loaded(HTMLParser):
    """What a browser fetches to show a page: targets of scripts, styles, fonts and images."""

    def __init__(self):
        super().__init__()
        self.targets = []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag == "link" and not any(word in FETCHED for word in given.get("rel", "").split()):
            return
        if given.get(LOADS.get(tag, "")):
            self.targets.append(given[LOADS[tag]])


def loaded(page):
    parser = Loaded()
    parser.feed(page.read_text(encoding="utf-8"))
    return parser.targets


def test_every_page_is_built(site):
    for page in PAGES:
        assert (site / page).with_suffix(".html").is_file(), page
    for name in ("report.schema.json", "policy.schema.json", "predicted_measured.svg"):
        assert (site / name).is_file()
    assert not list(site.glob("**/*.py"))


def test_no_page_asks_anything_of_others(site):
    count = 0
    for page in site.glob("**/*.html"):
        for target in loaded(page):
            count += 1
            assert not re.match(r"(?:[a-z]+:)?//", target), f"{page.name} loads {target}"
    assert count > 100
    for style in site.glob("**/*.css"):
        css = style.read_text(encoding="utf-8")
        assert not re.search(r"url\(\s*[\"']?(?:https?:)?//", css), style
        assert "@import" not in css, style


def test_what_is_asked_of_others_is_found(tmp_path):
    page = tmp_path / "page.html"
    page.write_text('<a href="//a"></a><link rel="icon" href="//b"><script src="//c"></script>')
    assert loaded(page) == ["//b", "//c"]


@pytest.mark.parametrize("page", PAGES)
def test_every_page_is_in_the_navigation(page):
    """Said twice, since mkdocs only warns of what it is told to warn of."""
    assert re.search(rf": {re.escape(page)}$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)


def documented(page, record):
    section = text(page).partition(f"\n## {record.__name__}\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| .+ \| .+ \| (.*) \|$", section, re.MULTILINE)
    return {name for name, meaning in rows if meaning.strip()}


@pytest.mark.parametrize(
    ("page", "record"),
    [
        ("policy.md", Rule),
        ("policy.md", Waiver),
        ("plan.md", AuditPlan),
        ("plan.md", AttackPlan),
        ("report.md", Report),
        ("report.md", Estimate),
        ("report.md", Judgement),
        ("report.md", RuleResult),
    ],
    ids=lambda given: getattr(given, "__name__", given),
)
def test_every_field_has_a_meaning(page, record):
    assert documented(page, record) == set(record.model_fields)


def test_every_key_of_the_gate_has_a_meaning():
    section = text("policy.md").partition("\n## Keys of `[gate]`\n")[2].partition("\n## ")[0]
    for key in Policy.model_fields:
        assert re.search(rf"^\| `{key}` \| .+ \| .+ \| \S.* \|$", section, re.MULTILINE), key


@pytest.mark.parametrize("page", ["plan.md", "report.md"])
def test_no_field_of_any_record_is_without_a_meaning(page):
    assert "|  |" not in text(page)


def test_every_metric_is_listed():
    measured = r"^\| `(\w+)` \| `(?:compress|predict|attack)`"
    rows = re.findall(measured, text("policy.md"), re.MULTILINE)
    assert tuple(rows) == METRICS


@pytest.mark.parametrize("code", CODES)
def test_every_finding_is_listed_with_what_to_do(code):
    section = text("findings.md").partition(f"\n## {code} ")[2].partition("\n## ")[0]
    assert "What next: " in section


@pytest.mark.parametrize("code", EXIT_CODES)
def test_every_exit_code_is_listed(code):
    assert re.search(rf"^\| {code} \| \S", text("exit-codes.md"), re.MULTILINE)


def test_exit_codes_are_those_of_the_program():
    errors = {PurifyAuditError.exit_code, InputError.exit_code}
    names = {EXIT_FAIL, EXIT_INCONCLUSIVE, EXIT_BROKEN}
    assert set(EXIT_CODES) == {0, 130, 138, 143} | errors | names


COMMANDS = [n for n, c in typer.main.get_command(app).commands.items() if not c.hidden]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_how_it_ends(name):
    assert f"`{name}`" in text("exit-codes.md")
    assert f"\n## purify-audit {name}\n" in text("cli.md")


def test_files_that_pages_name_are_there():
    for page in PAGES:
        for name in re.findall(r"`((?:examples|ci|benchmarks|tests)/[\w./-]+)`", text(page)):
            assert (ROOT / name).exists(), f"{page} names {name}"


def test_tests_that_pages_name_are_there():
    tests = "".join(path.read_text(encoding="utf-8") for path in ROOT.rglob("tests/**/*.py"))
    for page in PAGES:
        for name in re.findall(r"`(test_\w+)`", text(page)):
            assert f"def {name}(" in tests, f"{page} names {name}"


def test_error_rates_are_those_simulated():
    """The most frequent wrong decisions at 0.95, in per cent."""
    study = json.loads((ROOT / "benchmarks/gate_errors.json").read_text(encoding="utf-8"))
    assert study["command"] in text("statistics.md").replace("\n", " ")
    groups = {"means over draws": "mean of", "changes of verdicts": "paired"}
    section = text("statistics.md").partition("\n## The decision\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ([a-z][\w ,.]+) \| ([\d.]+)% \| ([\d.]+)% \|$", section, re.MULTILINE)
    assert len(rows) == 7
    for name, *shown in rows:
        found = [
            row
            for row in study["rows"]
            if row["confidence"] == 0.95 and row["values"].startswith(groups.get(name, name))
        ]
        worst = [100 * max(row[side] for row in found) for side in ("pass", "fail")]
        assert [float(rate) for rate in shown] == pytest.approx(worst, abs=0.0501), name
