"""What an audit will do: consistent, digested, and told in one line where it is not."""

import hashlib
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from purify_audit.core.errors import PlanError
from purify_audit.core.records import first_fault
from purify_audit.spec.attack_plan import AttackPlan
from purify_audit.spec.audit_plan import AuditPlan
from purify_audit.spec.probes import (
    FileProbe,
    LowFrequencyProbe,
    PowerProbe,
    SignProbe,
    parse_probe,
)
from purify_audit.spec.samplers import SAMPLER_PRESETS, parse_sampler

BASE = {
    "checkpoint": "model.safetensors",
    "data": "digits",
    "images": 64,
    "norm": "linf",
    "eps": [8 / 255],
    "probes": [{"kind": "sign"}],
    "draws": 4,
    "directions": 8,
    "seed": 0,
    "microbatch": 64,
}
ATTACK = {
    "norm": "linf",
    "eps": [0.1],
    "steps": 10,
    "draws": 1,
    "restarts": 1,
    "held_out": 8,
    "square_queries": 50,
    "microbatch": 64,
}
DIGEST = "62bdd8128040661e2fcdfc464e8b5938277185b3ae9d5a8f9ab43f85489ae22a"


def plan(**changes):
    return AuditPlan.model_validate(BASE | changes)


def fault(**changes):
    with pytest.raises(ValidationError) as raised:
        plan(**changes)
    return first_fault(raised.value)


# --- looks --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "looks"),
    [
        (1, (1,)),
        (7, (7,)),
        (8, (8,)),
        (15, (8, 15)),
        (20, (10, 20)),
        (32, (8, 16, 32)),
        (63, (8, 16, 32, 63)),
        (64, (8, 16, 32, 64)),
        (65, (9, 17, 33, 65)),
        (1000, (125, 250, 500, 1000)),
    ],
)
def test_looks_double_up_to_all_images(images, looks):
    assert plan(images=images, tolerance=0.01).looks == looks


@settings(derandomize=True, database=None)
@given(images=st.integers(1, 10**6), level=st.floats(0.51, 0.999))
def test_looks_are_few_and_share_the_level(images, level):
    asked = plan(images=images, level=level, tolerance=0.01)
    looks = asked.looks
    assert looks[-1] == images
    assert list(looks) == sorted(set(looks))
    assert 1 <= len(looks) <= 4
    assert all(n >= 8 for n in looks[:-1])
    # Bonferroni: the errors of all looks add up to the error allowed.
    assert math.isclose(len(looks) * (1 - asked.look_level), 1 - level, rel_tol=1e-9)


def test_without_a_tolerance_there_is_one_look_at_the_full_level():
    asked = plan(images=1000, level=0.9)
    assert asked.looks == (1000,)
    assert math.isclose(asked.look_level, 0.9)
    assert math.isclose(plan(images=1000, level=0.9, tolerance=1).look_level, 0.975)


# --- digest -------------------------------------------------------------------------------------


def test_the_digest_is_the_same_for_ever():
    assert plan().digest == DIGEST
    assert plan().digest == hashlib.sha256(plan().model_dump_json().encode()).hexdigest()


def test_a_plan_survives_being_written_and_read():
    asked = plan(
        sampler=parse_sampler("ddim", {"steps": "10"}),
        probes=[{"kind": "power"}, {"kind": "lowfreq", "band": 3}, {"kind": "file", "path": "a"}],
        eps=[0.1, 1 / 3],
        tolerance=0.01,
        seed=2**64 - 1,
    )
    again = AuditPlan.model_validate_json(asked.model_dump_json())
    assert again == asked
    assert again.digest == asked.digest


def test_the_order_in_which_settings_are_given_does_not_matter():
    assert AuditPlan.model_validate(dict(reversed(BASE.items()))).digest == DIGEST
    assert plan(t_star=None, classifier=None).digest == DIGEST


CHANGES = {
    "first_look": 16,
    "checkpoint": "other.safetensors",
    "load_options": {"preset": "diffpure-cifar10"},
    "classifier_load_options": {"preset": "robustbench-standard"},
    "classifier": "classifier.safetensors",
    "data": "digits:train",
    "first_id": 0,
    "last_id": 100,
    "images": 65,
    "norm": "l2",
    "eps": [math.nextafter(8 / 255, 1)],
    "probes": [{"kind": "sign"}, {"kind": "power"}],
    "draws": 5,
    "directions": 9,
    "t_star": 10,
    "sampler": {"kind": "ddpm"},
    "engine": {"precision": "bfloat16"},
    "seed": 1,
    "microbatch": 32,
    "level": 0.9,
    "tolerance": 0.01,
    "attack": ATTACK,
}


def test_every_setting_decides_the_digest():
    digests = {
        name: plan(**{"classifier": "any" if name == "attack" else None, name: value}).digest
        for name, value in CHANGES.items()
    }
    assert CHANGES.keys() == AuditPlan.model_fields.keys()
    assert len({DIGEST, *digests.values()}) == len(CHANGES) + 1


def test_the_order_of_probes_and_radii_decides_the_digest():
    assert plan(eps=[0.1, 0.2]).digest != plan(eps=[0.2, 0.1]).digest
    probes = [{"kind": "sign"}, {"kind": "power"}]
    assert plan(probes=probes).digest != plan(probes=probes[::-1]).digest


def test_every_setting_of_an_attack_decides_the_digest():
    others = ATTACK | {
        "norm": "l2", "eps": [0.2], "optimiser": "apgd", "steps": 11, "draws": 2, "restarts": 2,
        "loss": "ce", "gradient": "bpda", "step_size": 0.5, "held_out": 9, "square_queries": 51,
        "surrogate_steps": 4, "microbatch": 32, "warm_start": False, "early_stop": True,
        "predict_only": True, "targets": 8, "fresh_draws": 5, "fresh_steps": 7,
    }  # fmt: skip
    assert others.keys() == AttackPlan.model_fields.keys()
    digests = [plan(classifier="any", attack=ATTACK).digest]
    digests += [
        plan(classifier="any", attack=ATTACK | {name: v}).digest for name, v in others.items()
    ]
    assert len(set(digests)) == len(digests)


def test_an_attack_needs_a_classifier():
    assert "needs a classifier" in fault(attack=ATTACK)


# --- plans that contradict themselves -----------------------------------------------------------


@pytest.mark.parametrize("name", BASE)
def test_no_setting_may_be_missing(name):
    with pytest.raises(ValidationError) as raised:
        AuditPlan.model_validate({key: value for key, value in BASE.items() if key != name})
    assert first_fault(raised.value) == f"field '{name}': Field required"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eps": [0.1, 0.2, 0.1]}, "a radius is given twice"),
        ({"eps": [1.01]}, "an l-inf radius of 1.01 is more than the pixel range"),
        ({"eps": [0.1, 255]}, "an l-inf radius of 255.0 is more than the pixel range"),
        ({"eps": []}, "field 'eps': Tuple should have at least 1 item"),
        ({"eps": [0]}, "field 'eps.0': Input should be greater than 0"),
        ({"eps": [0.1, -0.1]}, "field 'eps.1': Input should be greater than 0"),
        ({"eps": [math.nan]}, "field 'eps.0': Input should be a finite number"),
        ({"eps": [math.inf]}, "field 'eps.0': Input should be a finite number"),
        ({"probes": []}, "field 'probes': Tuple should have at least 1 item"),
        ({"probes": [{"kind": "sign"}] * 2}, "a kind of probe is given twice"),
        ({"probes": [{"kind": "lowfreq", "band": 2}, {"kind": "lowfreq"}]}, "given twice"),
        ({"probes": [{"kind": "gradient"}]}, "'sign', 'uniform', 'sphere', 'lowfreq', 'power'"),
        ({"norm": "l3"}, "field 'norm': Input should be 'l1', 'l2' or 'linf'"),
        ({"images": 0}, "field 'images': Input should be greater than or equal to 1"),
        ({"draws": 0}, "field 'draws': Input should be greater than or equal to 1"),
        ({"draws": 2**32}, "field 'draws': Input should be less than 4294967296"),
        ({"directions": 2**32}, "field 'directions': Input should be less than 4294967296"),
        ({"first_id": -1}, "field 'first_id': Input should be greater than or equal to 0"),
        ({"last_id": 0}, "field 'last_id': Input should be greater than or equal to 1"),
        ({"t_star": 0}, "field 't_star': Input should be greater than or equal to 1"),
        ({"seed": -1}, "field 'seed': Input should be greater than or equal to 0"),
        ({"seed": 2**64}, "field 'seed': Input should be less than 18446744073709551616"),
        ({"microbatch": 0}, "field 'microbatch': Input should be greater than or equal to 1"),
        ({"microbatch": 65537}, "field 'microbatch': Input should be less than or equal to 65536"),
        ({"level": 0.5}, "field 'level': Input should be greater than 0.5"),
        ({"level": 1}, "field 'level': Input should be less than 1"),
        ({"tolerance": 0}, "field 'tolerance': Input should be greater than 0"),
        ({"colour": "red"}, "field 'colour': Extra inputs are not permitted"),
    ],
)
def test_contradictions(changes, message):
    assert message in fault(**changes)


def test_the_largest_radii():
    assert plan(eps=[1.0]).eps == (1.0,)
    assert plan(norm="l2", eps=[16.0]).eps == (16.0,)


def test_a_plan_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        plan().seed = 1


# --- probes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "given_settings", "probe"),
    [
        ("sign", {}, SignProbe()),
        ("lowfreq", {}, LowFrequencyProbe(band=None)),
        ("lowfreq", {"band": "3"}, LowFrequencyProbe(band=3)),
        ("power", {"block": "4", "iterations": "10"}, PowerProbe(block=4, iterations=10)),
        ("file", {"path": "a=b:c.npz"}, FileProbe(path="a=b:c.npz")),
    ],
)
def test_probes(kind, given_settings, probe):
    assert parse_probe(kind, given_settings) == probe
    assert parse_probe(kind, given_settings).kind == kind


@pytest.mark.parametrize(
    ("kind", "given_settings", "message"),
    [
        ("gradient", {}, "'sign', 'uniform', 'sphere', 'lowfreq', 'power', 'file'"),
        ("sign", {"size": "1"}, "field 'sign.size': Extra inputs are not permitted"),
        ("lowfreq", {"band": "0"}, "field 'lowfreq.band': Input should be greater than or equal"),
        ("lowfreq", {"band": "two"}, "field 'lowfreq.band': Input should be a valid integer"),
        ("power", {"block": "65"}, "field 'power.block': Input should be less than or equal to 64"),
        ("power", {"iterations": "1001"}, "field 'power.iterations': Input should be less than"),
        ("file", {}, "needs a path: file:path=attacked.npz"),
        ("file", {"path": "a", "kind_": "b"}, "needs a path: file:path=attacked.npz"),
        ("file", {"name": "a"}, "field 'file.path': Field required"),
    ],
)
def test_probes_that_are_none(kind, given_settings, message):
    with pytest.raises(PlanError, match=f"^probe '{kind}'") as raised:
        parse_probe(kind, given_settings)
    assert message in str(raised.value)
    assert raised.value.exit_code == 2


# --- samplers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", SAMPLER_PRESETS)
def test_every_preset_is_a_sampler_with_its_settings(preset):
    sampler = parse_sampler(preset, {})
    for name, value in SAMPLER_PRESETS[preset].items():
        assert getattr(sampler, name) == value
    assert sampler.rounds == 1
    changed = parse_sampler(preset, {"rounds": "2", "clamp": "false"})
    assert changed == sampler.model_copy(update={"rounds": 2, "clamp": False})


def test_presets_differ():
    texts = {json.dumps(parse_sampler(p, {}).model_dump(), sort_keys=True) for p in SAMPLER_PRESETS}
    assert len(texts) == len(SAMPLER_PRESETS) == 9


def test_settings_change_a_preset():
    assert parse_sampler("ddim", {"steps": "10", "eta": "0.5"}).model_dump() == {
        "kind": "ddim",
        "clipped_eps": True,
        "spacing": "trailing",
        "offset": 0,
        "rounds": 1,
        "clamp": True,
        "steps": 10,
        "stride": None,
        "eta": 0.5,
        "clip": True,
    }
    assert parse_sampler("ddpm", {"stride": "5"}).stride == 5
    assert parse_sampler("diffpure-sde", {"clamp": "true"}).clamp is True


@pytest.mark.parametrize(
    ("preset", "given_settings", "message"),
    [
        ("ddpm", {"stepz": "10"}, "field 'ddpm.stepz': Extra inputs are not permitted"),
        ("ddpm", {"steps": "0"}, "field 'ddpm.steps': Input should be greater than or equal to 1"),
        ("ddpm", {"steps": "ten"}, "field 'ddpm.steps': Input should be a valid integer"),
        ("ddpm", {"steps": "5", "stride": "5"}, "give steps or stride, not both"),
        ("ddpm", {"variance": "big"}, "'fixed-small', 'fixed-large' or 'learned-range'"),
        ("ddpm", {"eta": "1"}, "field 'ddpm.eta': Extra inputs are not permitted"),
        ("ddim", {"eta": "1.5"}, "field 'ddim.eta': Input should be less than or equal to 1"),
        ("ddim", {"eta": "nan"}, "field 'ddim.eta'"),
        ("one-step", {"steps": "5"}, "field 'one-step.steps': Extra inputs are not permitted"),
        ("diffpure-sde", {"rounds": "1001"}, "field 'vp-sde.rounds': Input should be less than"),
        ("diffpure-ode", {"clamp": "perhaps"}, "field 'vp-ode.clamp': Input should be a valid"),
    ],
)
def test_settings_that_a_sampler_does_not_have(preset, given_settings, message):
    with pytest.raises(PlanError, match=f"^sampler '{preset}': ") as raised:
        parse_sampler(preset, given_settings)
    assert message in str(raised.value)


@pytest.mark.parametrize("preset", ["", "euler", "vp-sde", "DDPM"])
def test_an_unknown_sampler_is_answered_with_those_there_are(preset):
    with pytest.raises(PlanError, match=f"^no sampler '{preset}'; there are ") as raised:
        parse_sampler(preset, {})
    assert all(name in str(raised.value) for name in SAMPLER_PRESETS)
    assert raised.value.exit_code == 2


# --- on the command line ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--probe", "gradient"], "probe 'gradient': "),
        (["--probe", "power:block=two"], "probe 'power': field 'power.block': "),
        (["--probe", "sign:"], "'sign:': '' is not key=value"),
        (["--probe", "file"], "probe 'file' needs a path: file:path=attacked.npz"),
        (["--sampler", "euler"], "no sampler 'euler'; there are ddpm, "),
        (["--sampler", "ddim:steps=0"], "sampler 'ddim': field 'ddim.steps': "),
        (["--eps", "0.1,x"], "--eps '0.1,x' is not a list of numbers"),
        (["--eps", "1/0"], "--eps '1/0' is not a list of numbers"),
        (["--eps", "0.1,0.1"], "the plan cannot be carried out: "),
        (["--eps", "2"], "the plan cannot be carried out: "),
        (["--eps", "-0.1"], "the plan cannot be carried out: field 'eps.0': "),
        (["--norm", "l3"], "the plan cannot be carried out: field 'norm': "),
        (["--level", "1.5"], "the plan cannot be carried out: field 'level': "),
        (["--level", "nan"], "the plan cannot be carried out: field 'level': "),
        (["--tolerance", "0"], "the plan cannot be carried out: field 'tolerance': "),
        (["--microbatch", "100000"], "the plan cannot be carried out: field 'microbatch': "),
        (["--draws", str(2**32)], "the plan cannot be carried out: field 'draws': "),
        (["--probe", "sign", "--probe", "sign"], "the plan cannot be carried out: "),
        (["--ids", "5"], "--ids '5' is not FIRST:LAST"),
        (["--ids", "0:0"], "the plan cannot be carried out: field 'last_id': "),
        (["--ids", "9:3"], "digits: no id is in [9, 3)"),
        (["--device", "tpu"], "device 'tpu' is not auto, cpu, cuda or cuda:N"),
    ],
)
def test_settings_are_refused_in_one_sentence(arguments, message, refused):
    assert refused("compress", "identity", *arguments).startswith(message)
