"""Markdown read back by a parser: text stays text, tables stay tables, limits hold."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from render_support import (
    ATTACK,
    COMPRESSION,
    EVERY,
    HOSTILE,
    VERDICTS,
    hostile_judgement,
    hostile_report,
    judgement,
    many_findings,
    many_rules,
    report,
    started,
)

from purify_audit.render.markdown.comment import MARKER, SUMMARY, markdown_report, step_summary
from purify_audit.render.markdown.text import Section, escaped, fenced, fitted, table
from purify_audit.render.wording import visible

PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])
JOINER = "\u2060"


def inline(token):
    return "".join(
        {"text": t.content, "code_inline": t.content, "html_inline": f"<HTML {t.content}>"}.get(
            t.type, ""
        )
        for t in token.children
    )


def tables(text):
    """The cells of every table, row by row, as a reader sees them."""
    found, row = [], None
    for token in PARSER.parse(text):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            row = []
            found[-1].append(row)
        elif token.type == "table_close":
            row = None
        elif token.type == "inline" and row is not None:
            row.append(inline(token))
    return found


@pytest.mark.parametrize(
    "text", [HOSTILE, "", "a|b", "*a* _b_ ~~c~~", "[x](y) ![i](j)", "\\|", "`"]
)
def test_escaped_text_reads_as_it_is(text):
    cell = tables(f"| x |\n| --- |\n| {escaped(text)} |\n")[0]
    assert [c.replace(JOINER, "") for row in cell[1:] for c in row] == [visible(text)]


@pytest.mark.parametrize(
    ("text", "link"),
    [
        ("@team/ops", r"@\w"),
        ("see #12", r"#\d"),
        ("owner/name#12", r"#\d"),
        ("gh-7", r"(?i)gh-\d"),
        ("http://evil.example", r"://"),
        ("WWW.evil.example", r"(?i)www\."),
        ("a@b.example", r"@\w"),
        (":tada:", r":\w+:"),
    ],
)
def test_services_find_nothing_to_link(text, link):
    assert re.search(link, text)
    assert not re.search(link, escaped(text))
    assert escaped(text).replace(JOINER, "") == text


def test_a_fence_is_longer_than_what_it_holds():
    text, fence = fenced("a ```` b\n~~~\n\x1b[0m", "sh")
    assert fence == "`````\n"
    tokens = PARSER.parse(text + fence + "after\n")
    assert tokens[0].content == "a ```` b\n~~~\n\\x1b[0m\n"
    assert tokens[1].type == "paragraph_open"


@pytest.mark.parametrize("verdict", [None, *VERDICTS])
@pytest.mark.parametrize("attacked", [True, False])
def test_the_whole_page(verdict, attacked):
    made, judged = report(attacked=attacked), VERDICTS.get(verdict)
    page = markdown_report(made, judged)
    assert page == markdown_report(made, judged)
    assert page.startswith(f"{MARKER}\n## ")
    head = page.split("\n")[1]
    assert (verdict or "measured").upper() in head.upper()
    assert "### What was not tested" in page
    assert ("### Robust accuracy, ℓ∞ 0.15" in page) == attacked
    assert ("### Rules" in page) == (judged is not None)
    assert "purify-audit verify models/purifier.safetensors --attack\n" in page
    assert "more row" not in page
    widths = [{len(row) for row in rows} for rows in tables(page)]
    assert all(len(width) == 1 for width in widths), widths


def test_rules_and_notes():
    page = markdown_report(report(), EVERY.model_copy(update={"notes": ("A waiver expired.",)}))
    rows = tables(page)[0]
    assert rows[0] == ["rule", "requirement", "decision", "reason"]
    assert [row[0] for row in rows[1:]] == [r.rule for r in EVERY.rules]
    assert rows[1][1] == "compression_rate (l2, sign, 0.15) <= 0.7"
    assert rows[6][2] == "❌ FAIL (waived: known since May)"
    assert "- A waiver expired.\n" in page


def test_main_numbers():
    rows = {(row[0], row[1]): row[2:] for row in tables(markdown_report(report(), None))[0]}
    aligned = rows["aligned_robust_accuracy", "linf, aligned, 0.15"]
    assert aligned == ["25.0%", "[12.5, 50.0]", "┈┈━━━●━━━━━┈┈┈┈┈┈┈┈┈", "32"]
    assert rows["compression_rate", "l2, sign, 0.15"] == ["0.500", "[0.400, 0.625]", "", "32"]
    assert rows["compression_rate", "l2, power, 8/255"] == ["0.250", "no interval", "", "1"]
    assert rows["anchor_accuracy", ""][2] == "┈┈┈┈┈┈┈┈┈┈┈┈┈┈┈━━━●━"
    assert not any(name.endswith("_control") for name, _ in rows)


def test_protocols():
    rows = {row[0]: row[1:] for row in tables(markdown_report(report(), None))[1]}
    own = rows["the attack's own draws (aligned)"]
    assert own == [
        "25.0% [12.5, 50.0]", "62.5% [40.0, 62.5]", "93.8% [40.0, 62.5]", "—",
    ]  # fmt: skip
    assert rows["mean of 4 held-out draws"] == [
        "37.5% [40.0, 62.5]", "75.0% [40.0, 62.5]", "—", "—",
    ]  # fmt: skip
    assert rows["classifier without purifier"] == ["0.0% [0.0, 12.5]", "", "—", ""]


def test_a_prediction_has_no_protocols():
    attack = ATTACK.model_copy(update={"predict_only": True})
    plan = report().plan.model_copy(update={"attack": attack})
    assert "### Robust accuracy" not in markdown_report(report(plan=plan), None)


def test_nothing_measured_and_nothing_found():
    page = markdown_report(report(estimates=(), findings=()), None)
    assert "### Main numbers" not in page
    assert "### Findings\n\nNone.\n" in page
    assert "PARTIAL" in markdown_report(report(status="partial"), None).split("\n")[1]


def test_hostile_text_everywhere():
    page = markdown_report(hostile_report(), hostile_judgement())
    assert "<HTML" not in str(tables(page))
    for token in PARSER.parse(page):
        for part in token.children or ():
            assert part.type not in ("link_open", "image", "html_inline"), part
        if token.type == "html_block":
            assert token.content.strip() in (
                MARKER,
                "<details><summary>Reproduce</summary>",
                "</details>",
            )
    outside = page[: page.index("<details>")]
    assert not re.search(r"@\w|#\d|://|www\.", outside)
    assert {len(row) for row in tables(page)[0]} == {4}


def size(page):
    return max(len(page.encode()), len(page.encode("utf-16-le")) // 2)


@pytest.mark.parametrize("limit", [300, 1000, 3000, 10_000, 65_000])
@pytest.mark.parametrize(
    ("made", "judged"),
    [
        (report(), many_rules()),
        (many_findings(), EVERY),
        (many_findings(), many_rules()),
        (hostile_report(), hostile_judgement()),
    ],
)
def test_limits_hold_at_row_boundaries(made, judged, limit):
    page = markdown_report(made, judged, limit)
    assert size(page) <= limit
    assert page.startswith(MARKER)
    assert page.count("<details>") == page.count("</details>")
    widths = [{len(row) for row in rows} for rows in tables(page)]
    assert all(len(width) == 1 for width in widths)


def test_what_is_left_out_is_counted():
    page = markdown_report(many_findings(), many_rules())
    more = [int(n.replace(",", "")) for n in re.findall(r"\n([\d,]+) more rows are", page)]
    found = tables(page)
    assert len(found[0]) - 1 + more[0] == 500
    assert len(found[-1]) - 1 + more[1] == 10_000
    assert size(page) > 60_000


def test_a_summary_has_more_room():
    page = step_summary(many_findings(), many_rules())
    assert size(page) <= SUMMARY
    assert len(tables(page)[0]) == 501
    assert len(tables(page)[-1]) == 10_001


def test_space_is_shared():
    few = Section("few\n", ("a\n",) * 3)
    many = Section("many\n", ("b" * 9 + "\n",) * 100)
    page = fitted("", [many, few, many], 600)
    assert page.count("a\n") == 3
    kept = [part.count("b" * 9) for part in page.split("few\n")]
    assert kept[0] == kept[1] > 5
    assert len(page.encode()) <= 600


def test_one_row_that_does_not_fit():
    rows = [("x", "y" * 500), ("z", "w")]
    page = fitted("", [table("T", ("a", "b:"), rows)], 400)
    assert page.endswith("\n2 more rows are in report.json.\n")
    page = fitted("", [table("T", ("a", "b:"), rows[::-1])], 400)
    assert page.endswith("| z | w |\n\n1 more row is in report.json.\n")
    assert fitted("x" * 10, [table("T", ("a",), [("b",)])], 20) == "x" * 10


def test_the_opening_takes_its_space():
    page = fitted("x" * 500, [table("T", ("a",), [("b" * 20,)] * 50)], 1000)
    assert 850 < size(page) <= 1000


def test_a_long_command_does_not_break_the_page():
    page = markdown_report(report(run=started("x " * 50_000)), judgement())
    assert size(page) <= 65_000
    assert page.count("<details>") == page.count("</details>")


def test_control_characters_of_a_command_are_shown():
    page = markdown_report(report(run=started("a\x1b[2J\n```\n</details>")), None)
    assert "a\\x1b[2J\n```\n</details>\n" in page
    assert "````sh\n" in page


def test_bars_of_shares_only():
    rows = tables(markdown_report(report(estimates=COMPRESSION), None))[0]
    assert {row[0] for row in rows if "●" in row[4]} == {"anchor_accuracy"}


@given(st.text(max_size=60))
def test_any_text_reads_as_it_is(text):
    cell = tables(f"| x |\n| --- |\n| {escaped(text)} |\n")[0]
    assert [c.replace(JOINER, "") for row in cell[1:] for c in row] == [visible(text).strip(" ")]
