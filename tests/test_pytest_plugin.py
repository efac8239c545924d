"""The plugin, in pytest sessions of its own: what a team's test prints, and how it ends."""

import json
import subprocess
import sys
from importlib.metadata import entry_points

import pytest

from purify_audit.cli import app

pytest_plugins = "pytester"

POLICY = """
data = "digits"
images = 16
eps = 0.15

[[gate.rule]]
id = "compresses"
metric = "compression_rate"
norm = "l2"
probe = "sign"
{bound}
"""
PASSES, FAILS = "max = 0.6", "max = 0.2"
UNDECIDED = "max = 0.4449\nmin_images = 16"
SMOOTHING = "gaussian-smoothing:sigma=1"  # its rate on 16 digits: 0.450, 0.432 to 0.467
TEST = f"def test_gate(purify_audit):\n    purify_audit('{SMOOTHING}').assert_policy()\n"

# Where the package was installed after the plugin was written, pytest finds it by itself.
FOUND = "purify_audit" in entry_points(group="pytest11").names
LOAD = () if FOUND else ("-p", "purify_audit.pytest_plugin")


@pytest.fixture(scope="module", autouse=True)
def _imported(tmp_path_factory):
    """Import all that an audit does: a session forgets its imports, and NumPy allows no second."""
    out = tmp_path_factory.mktemp("first") / "report.json"
    asked = f"verify {SMOOTHING} --attack --data digits --images 4 --steps 2 --quiet --out {out}"
    app(asked.split(), standalone_mode=False)


@pytest.fixture
def session(pytester):
    """(test file, policy's bound, options) -> the result of pytest in a folder with both."""

    def run(test=TEST, bound=PASSES, *options):
        pytester.makepyfile(test_defence=test)
        if bound is not None:
            pytester.path.joinpath("purify-audit.toml").write_text(POLICY.format(bound=bound))
        # In the project's own strictness.
        pytester.makeini(
            "[pytest]\nfilterwarnings = error\naddopts = --strict-markers --strict-config\n"
        )
        return pytester.runpytest(*LOAD, *options)

    return run


def test_a_policy_that_passes(session):
    session().assert_outcomes(passed=1)


def test_a_rule_that_fails_is_told_without_a_trace_of_the_plugin(session):
    result = session(bound=f'{FAILS}\n[[gate.rule]]\nid = "b"\nfindings = ["PA101"]')
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "E * AssertionError: gaussian-smoothing:sigma=1 by purify-audit.toml: FAIL",
            "E *  compresses  FAIL: compression_rate (l2, sign, 0.15) <= 0.2",
            "E *              0.4*, * interval 0.4* to 0.4* from 16 images.",
            "E *  1 other rule passes or is waived",
        ]
    )
    result.stdout.no_fnmatch_line("*pytest_plugin.py*")


@pytest.mark.parametrize(
    ("options", "outcome"),
    [
        ((), "failed"),
        (("--purify-inconclusive=fail",), "failed"),
        (("--purify-inconclusive=skip",), "skipped"),
        (("--purify-inconclusive=xfail",), "xfailed"),
        (("-o", "purify_inconclusive=skip"), "skipped"),
        (("-o", "purify_inconclusive=skip", "--purify-inconclusive=fail"), "failed"),
    ],
)
def test_an_undecided_policy(options, outcome, session):
    result = session(TEST, UNDECIDED, "-rxs", *options)
    result.assert_outcomes(**{outcome: 1})
    result.stdout.fnmatch_lines(["*compresses  INCONCLUSIVE: compression_rate*", "*more images*"])


def test_a_failing_policy_fails_in_every_mode(session):
    session(TEST, FAILS, "--purify-inconclusive=skip").assert_outcomes(failed=1)


def test_a_mode_that_there_is_not(session):
    result = session(TEST, PASSES, "-o", "purify_inconclusive=ignore")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*purify_inconclusive 'ignore' is not one of fail, skip, xfail"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            "'none.safetensors').assert_policy(",
            "purify-audit: none.safetensors: no such file",
        ),
        (
            f"'{SMOOTHING}').assert_policy('none.toml'",
            "purify-audit: none.toml: cannot be read: No such file or directory",
        ),
        (
            f"'{SMOOTHING}', policy='none.toml'",
            "purify-audit: none.toml: cannot be read: No such file or directory",
        ),
        (
            f"'{SMOOTHING}', image=3",
            "purify-audit: purify_audit(…): no setting 'image'; 'images' may be meant",
        ),
        (
            f"'{SMOOTHING}', images=8",
            "purify-audit: rule 'compresses' cannot be decided: it requires 16 images and 8 are*",
        ),
        (
            "'report.json', images=8",
            "purify-audit: report.json: is a report, so 'images' cannot be changed",
        ),
        ("'none.json'", "purify-audit: none.json: cannot be read: No such file or directory"),
        (
            f"'{SMOOTHING}', arguments={{'n': 1}}",
            "purify-audit: gaussian-smoothing:sigma=1: is a transformation; leave out --arg",
        ),
    ],
)
def test_what_cannot_be_used_is_one_sentence(call, message, session):
    result = session(f"def test_gate(purify_audit):\n    purify_audit({call})\n")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([message])
    result.stdout.no_fnmatch_line("*Error*")


def test_a_bad_policy_is_one_sentence_with_its_line(session):
    result = session(TEST, "maxx = 0.6")
    result.assert_outcomes(failed=1)
    told = "purify-audit: purify-audit.toml, line 11: no key 'maxx'; 'max' may be meant"
    result.stdout.fnmatch_lines([told])


def test_without_a_policy_there_is_a_report_and_nothing_to_assert(session):
    result = session(
        "def test_report(purify_audit):\n"
        f"    audited = purify_audit('{SMOOTHING}', data='digits', images=4)\n"
        "    assert len(audited.report.data.ids) == 4\n"
        "    assert audited.report.attack is None\n"
        "    assert audited.path.is_file()\n"
        "    audited.assert_policy()\n",
        None,
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["purify-audit: no policy: give --policy FILE, or write *"])


def test_attack_and_arguments(session, pytester):
    pytester.makepyfile(
        defence="def make(scale: float):\n"
        "    call = lambda x: scale * x\n"
        "    call.randomised = False\n"
        "    return call\n"
    )
    session(
        "def test_attack(purify_audit):\n"
        "    report = purify_audit('defence.py:make', arguments={'scale': '0.5'}, attack=True,\n"
        "                          data='digits', images=4, steps=2, eps=0.15).report\n"
        "    assert report.attack is not None\n"
        "    rate = report.estimates[0]\n"
        "    assert (rate.metric, round(rate.value, 6)) == ('compression_rate', 0.5)\n",
        None,
    ).assert_outcomes(passed=1)


def test_reports_are_saved_where_it_is_asked(session, pytester):
    twice = TEST + f"    purify_audit('{SMOOTHING}', images=17)\n"
    session(twice, PASSES, "--purify-report-dir=out").assert_outcomes(passed=1)
    stem = "test_defence.py-test_gate"
    made = {path.name for path in pytester.path.joinpath("out").iterdir()}
    assert made == {f"{stem}{n}{end}" for n in ("", "-2") for end in (".json", ".rows.safetensors")}
    report = json.loads(pytester.path.joinpath(f"out/{stem}-2.json").read_text())
    assert len(report["data"]["ids"]) == 17
    assert report["run"]["command"] == "pytest test_defence.py::test_gate"
    again = f"def test_gate(purify_audit):\n    purify_audit('out/{stem}.json').assert_policy()\n"
    session(again).assert_outcomes(passed=1)


def test_a_regression_against_a_baseline(session, pytester):
    session(TEST, PASSES, "--purify-report-dir=old").assert_outcomes(passed=1)
    compared = (
        "def test_same(purify_audit):\n"
        "    told = purify_audit('gaussian-smoothing:sigma=1')\n"
        "    told.assert_policy(baseline='old/test_defence.py-test_gate.json')\n"
        "def test_less(purify_audit):\n"
        "    told = purify_audit('gaussian-smoothing:sigma=0.5')\n"
        "    told.assert_policy(baseline='old/test_defence.py-test_gate.json')\n"
    )
    result = session(compared, "max_increase = 0.05")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*rises by at most 0.05 against the baseline"])


def test_tests_with_the_fixture_are_marked(session):
    both = TEST + "def test_other():\n    pass\n"
    session(both, PASSES, "-m", "not purify_audit").assert_outcomes(passed=1, deselected=1)
    session(both, PASSES, "--markers").stdout.fnmatch_lines(["@pytest.mark.purify_audit: *"])


def test_it_can_be_left_out(pytester):
    pytester.makepyfile(TEST)
    name = "purify_audit" if FOUND else "purify_audit.pytest_plugin"
    result = pytester.runpytest("-p", f"no:{name}")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*fixture 'purify_audit' not found*"])


def test_nothing_slow_is_imported_at_the_start():
    program = (
        "import sys, purify_audit.pytest_plugin\n"
        "print({'torch', 'pydantic', 'numpy', 'typer', 'rich'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr
