"""Policies: read, refused with the key, the line and what was meant, and told to editors."""

import json
from pathlib import Path

import jsonschema
import pytest
from judged import policy_file

from purify_audit.core.errors import PlanError
from purify_audit.gate.policy import Policy, Rule, Waiver, policy_schema, read_policy

GOOD = """\
checkpoint = "model.safetensors"
images = 64

[gate]
confidence = 0.9

[[gate.rule]]
id = "rate"
metric = "compression_rate"
norm = "l2"
eps = "8/255"
max = 0.5

[[gate.rule]]
id = "clean"
findings = ["PA1"]

[[gate.waiver]]
rule = "rate"
model = "0123456789ab"
reason = "known"
expires = 2027-01-31
"""


def refused(tmp_path, text):
    with pytest.raises(PlanError) as raised:
        policy_file(tmp_path, text)
    return str(raised.value)


def test_a_policy_is_read(tmp_path):
    found = policy_file(tmp_path, GOOD)
    rate, clean = found.policy.rule
    assert (rate.eps, rate.bound, rate.regression) == (8 / 255, ("<=", 0.5), False)
    assert (clean.findings, clean.stage) == (("PA1",), "compress")
    assert found.policy.confidence_of(rate) == 0.9
    assert found.policy.min_images_of(rate) == 16
    assert found.settings == {"checkpoint": "model.safetensors", "images": 64}
    assert (found.line("rule", 0), found.line("rule", 1)) == (7, 14)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("metric =", "metrc =", "policy.toml, line 9: no key 'metrc'; 'metric' may be meant"),
        ("max =", "maximum =", "policy.toml, line 12: no key 'maximum'; 'max' may be meant"),
        ("confidence", "confidnce", "policy.toml, line 5: no key 'confidnce'; 'confidence' may"),
        ("reason", "because", "policy.toml, line 21: no key 'because'; there are expires, model"),
        ("images = 64", "imges = 64", "policy.toml, line 2: no setting 'imges'; 'images' may be"),
        ("[gate]\n", "[gat]\n", "policy.toml, line 4: no setting 'gat'; 'gate' may be meant"),
        ("compression_rate", "compresion_rate", "'compresion_rate'; 'compression_rate' may be"),
        ('"l2"', '"l3"', "policy.toml, line 10: 'norm' is 'l3'; there are l1, l2, linf"),
        ('"8/255"', '"8/x"', "policy.toml, line 11: 'eps': '8/x' is not a radius"),
        ("max = 0.5", "max = nan", "policy.toml, line 12: 'max': Input should be a finite number"),
        ("max = 0.5", "max = 1\nmin = 0", "policy.toml, line 7: give one of min, max, max_incr"),
        ("max = 0.5\n", "", "policy.toml, line 7: give one of min, max, max_increase"),
        ("max = 0.5", "max_increase = -1", "policy.toml, line 12: 'max_increase'"),
        ('metric = "compression_rate"\n', "", "policy.toml, line 7: give either a metric or find"),
        ('"PA1"', '"PX1"', "policy.toml, line 16: 'findings': no finding 'PX1'"),
        ('"PA1"', '""', "no finding ''"),
        ('["PA1"]', '["PA1"]\nmax = 1', "line 14: a rule about findings has no 'max'"),
        ('["PA1"]', '["PA1"]\nprobe = "x"', "a rule about findings has no 'probe'"),
        ('"clean"', '"rate"', "policy.toml, line 4: two rules are called 'rate'"),
        ('id = "rate"', 'id = "a b"', "policy.toml, line 8: 'id'"),
        ('id = "rate"\n', "", "policy.toml, line 7: 'id' is missing"),
        ('rule = "rate"', 'rule = "rat"', "a waiver is for 'rat', and there is no such rule"),
        ("0123456789ab", "0123", "policy.toml, line 20: 'model'"),
        ("expires = 2027-01-31\n", "", "'expires' is missing"),
        ("2027-01-31", '"soon"', "policy.toml, line 22: 'expires'"),
        ("0.9", "1.0", "policy.toml, line 5: 'confidence': Input should be less than 1"),
        ("images = 64", "images = '64'", "policy.toml, line 2: 'images' is '64', not a whole"),
        ("[gate]", "[gate", "policy.toml: cannot be read: "),
        ("max = 0.5", "max = true", "policy.toml, line 12: 'max'"),
        ("max = 0.5", 'max = "0.5"', "policy.toml, line 12: 'max'"),
        ("confidence = 0.9", 'confidence = "0.9"', "policy.toml, line 5: 'confidence'"),
        ("2027-01-31", "1801353600", "policy.toml, line 22: 'expires'"),
        ('"known"', '" "', "policy.toml, line 21: 'reason'"),
        ('"8/255"', "-1", "policy.toml, line 11: 'eps'"),
        ('"8/255"', "true", "policy.toml, line 11: 'eps'"),
        ('"PA1"', '"PA313"', "PA313 is reported when a report is recomputed"),
        ('["PA1"]', '["PA1"]\nmin_draws = 3', "a rule about findings has no 'min_draws'"),
        ('["PA1"]', '["PA1"]\nconfidence = 0.9', "a rule about findings has no 'confidence'"),
        (
            '"compression_rate"\nnorm = "l2"\neps = "8/255"\nmax = 0.5',
            '"anchor_accuracy"\nmin = 1.5',
            "line 7: anchor_accuracy is in [0, 1], and min = 1.5 is not",
        ),
    ],
)
def test_a_fault_is_told_with_its_place(tmp_path, old, new, message):
    assert old in GOOD
    assert message in refused(tmp_path, GOOD.replace(old, new, 1))


def test_rules_are_needed(tmp_path):
    assert refused(tmp_path, "images = 3\n") == (
        f"{tmp_path / 'policy.toml'}: has no policy; rules are written under [[gate.rule]]"
    )
    assert "a policy without rules decides nothing; write [[gate.rule]]" in refused(
        tmp_path, "[gate]\nconfidence = 0.9\n"
    )
    assert "'rule'" in refused(tmp_path, "[gate]\nrule = []\n")


def test_a_root_has_no_regression(tmp_path):
    text = '[[gate.rule]]\nid = "a"\nmetric = "rms_gain"\nmax_increase = 0.1\n'
    assert "use the rate" in refused(tmp_path, text)


def test_where_a_policy_is_looked_for(tmp_path):
    rule = 'id = "{}"\nmetric = "compression_rate"\nmax = 1\n'
    with pytest.raises(PlanError, match=r"^no policy: give --policy FILE"):
        read_policy(None, tmp_path)
    project = tmp_path / "pyproject.toml"
    project.write_text("[project]\nname = 'x'\n")
    with pytest.raises(PlanError, match=r"^no policy"):
        read_policy(None, tmp_path)
    project.write_text("[[tool.purify-audit.gate.rule]]\n" + rule.format("project"))
    assert read_policy(None, tmp_path).policy.rule[0].id == "project"
    assert read_policy(None, tmp_path).line("rule", 0) == 1
    (tmp_path / "purify-audit.toml").write_text("[[gate.rule]]\n" + rule.format("own"))
    assert read_policy(None, tmp_path).policy.rule[0].id == "own"
    named = tmp_path / "other.toml"
    named.write_text("[[gate.rule]]\n" + rule.format("named"))
    assert read_policy(named, tmp_path).policy.rule[0].id == "named"
    with pytest.raises(PlanError, match=r"none\.toml: cannot be read: No such file"):
        read_policy(tmp_path / "none.toml", tmp_path)


@pytest.mark.parametrize(
    ("bound", "expected"),
    [
        ("min = 0.3", (">=", 0.3)),
        ("max = 0.3", ("<=", 0.3)),
        ("max_increase = 0.3", ("<=", 0.3)),
        ("max_decrease = 0.3", (">=", -0.3)),
    ],
)
def test_bounds(tmp_path, bound, expected):
    text = f'[[gate.rule]]\nid = "a"\nmetric = "anchor_accuracy"\n{bound}\n'
    (rule,) = policy_file(tmp_path, text).policy.rule
    assert rule.bound == expected
    assert rule.regression == bound.startswith("max_")


@pytest.mark.parametrize(
    ("of", "stage"),
    [
        ('metric = "compression_rate"\nmax = 1', "compress"),
        ('metric = "anchor_accuracy"\nmin = 0', "compress"),
        ('metric = "predicted_robust_accuracy"\nmin = 0', "predict"),
        ('metric = "randomness_inflation"\nmax = 1', "attack"),
        ('findings = ["PA107"]', "compress"),
        ('findings = ["PA309"]', "attack"),
        ('findings = ["PA"]', "attack"),
    ],
)
def test_what_a_rule_needs(tmp_path, of, stage):
    (rule,) = policy_file(tmp_path, f'[[gate.rule]]\nid = "a"\n{of}\n').policy.rule
    assert rule.stage == stage


def test_the_schema_for_editors_accepts_what_is_read_and_refuses_what_is_not():
    import tomllib

    schema = json.loads(policy_schema())
    jsonschema.Draft202012Validator.check_schema(schema)
    check = jsonschema.Draft202012Validator(schema)
    good = tomllib.loads(GOOD)
    good["gate"]["waiver"][0]["expires"] = "2027-01-31"  # JSON has no dates
    assert check.is_valid(good)
    for key, value in (("metrc", 1), ("metric", "none"), ("max", "x")):
        bad = json.loads(json.dumps(good))
        bad["gate"]["rule"][0][key] = value
        assert not check.is_valid(bad)


def test_every_key_of_the_records_is_described():
    for record in (Policy, Rule, Waiver):
        for name in record.model_fields:
            assert f"        {name}: " in record.__doc__


def test_the_committed_schema_is_this_one():
    page = Path(__file__).parents[2] / "docs/policy.schema.json"
    assert page.read_text(encoding="utf-8") == policy_schema()


def test_line_breaks_and_marks_of_other_systems(tmp_path):
    path = tmp_path / "p.toml"
    rule = '[[gate.rule]]\r\nid = "a"\r\nmetric = "compression_rate"\r\nmax = 1\r\n'
    path.write_bytes(("\ufeff" + rule).encode())
    assert read_policy(path, tmp_path).policy.rule[0].max == 1
    path.write_text('# \u2028 \x85\n[[gate.rule]]\nid = "a"\nmetrc = 3\n', encoding="utf-8")
    with pytest.raises(PlanError, match=r"p\.toml, line 4: no key 'metrc'"):
        read_policy(path, tmp_path)
    path.write_text("a = " + "[" * 5000 + "]" * 5000)
    with pytest.raises(PlanError, match="cannot be read"):
        read_policy(path, tmp_path)
