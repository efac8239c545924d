"""What a checkpoint may say of itself, and what is refused and how."""

import copy
import json
import re

import pytest
from conftest import FAMILIES, example_card
from effort import calls
from hypothesis import given, settings
from hypothesis import strategies as st

from purify_audit.core.errors import CardError
from purify_audit.core.records import printable
from purify_audit.spec.card import DiffusionCard, TransformCard, parse_card
from purify_audit.spec.load_options import LoadOptions
from purify_audit.spec.samplers import CosineSchedule

EVERY_FAMILY = (*FAMILIES, "transform")


def changed(data, path, value):
    """A card's data with the field at a dotted path set, or deleted when `value` is `...`."""
    data = copy.deepcopy(data)
    *parents, last = path.split(".")
    place = data
    for parent in parents:
        place = place[int(parent) if isinstance(place, list) else parent]
    key = int(last) if isinstance(place, list) else last
    if value is ...:
        del place[key]
    else:
        place[key] = value
    return data


def fault(data):
    """The one line that refuses a card."""
    text = data if isinstance(data, str | bytes) else json.dumps(data)
    with pytest.raises(CardError) as raised:
        parse_card(text, "card.json")
    message = str(raised.value)
    assert raised.value.exit_code == 2
    assert message.startswith("card.json: the card ")
    assert message.isprintable()
    assert len(message) < 500
    return message.removeprefix("card.json: the card cannot be used: ")


# --- what is accepted ---------------------------------------------------------------------------


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_a_card_survives_being_written_and_read(family, card_data):
    card = parse_card(json.dumps(card_data(family)), "test")
    assert parse_card(card.model_dump_json(), "test") == card
    assert card.name == f"tiny {family}"
    assert card.spec == 1
    assert card.image.shape == (1, 8, 8)


def test_the_former_name_of_time_conditioning_is_still_read(card_data):
    data = card_data("diffusion")
    former = {"clock" if k == "time_conditioning" else k: v for k, v in data.items()}
    card = parse_card(json.dumps(former), "test")
    assert card == parse_card(json.dumps(data), "test")
    assert "clock" not in card.model_dump()
    assert "clock" in fault(data | former)  # not both
    assert LoadOptions(assume={"clock": "index"}).assume == {"time_conditioning": "index"}


def test_a_card_cannot_be_changed(make_card):
    with pytest.raises(ValueError, match="frozen"):
        make_card().t_star = 1


@pytest.mark.parametrize(
    ("family", "changes", "randomised"),
    [
        ("diffusion", {}, True),
        ("feedforward", {}, False),
        ("feedforward", {"sigma": 0.1}, True),
        ("transform", {}, False),
        ("transform", {"transform": {"kind": "gaussian-noise"}}, True),
    ],
)
def test_whether_a_purifier_is_randomised(family, changes, randomised, make_card):
    assert make_card(family, **changes).randomised is randomised


def test_whole_numbers_are_taken_for_real_ones(make_card):
    assert make_card(data_range=[0, 1]).data_range == (0.0, 1.0)


# --- what is no card ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"Invalid JSON: EOF while parsing a value"),
        ("{", r"Invalid JSON: EOF while parsing an object"),
        ('{"name": "a"} trailing', r"Invalid JSON: trailing characters"),
        ("{'name': 'a'}", r"Invalid JSON"),
        ("[" * 100_000, r"Invalid JSON: recursion limit exceeded"),
        ('{"a":' * 100_000, r"Invalid JSON: recursion limit exceeded"),
        (b"\xff\xfe{}", r"Invalid JSON"),
        (b'{"name": "\xff"}', r"Invalid JSON"),
        ('{"name": "\\ud800"}', r"Invalid JSON"),
        ("null", r"Input should be an object"),
        ("[]", r"Input should be an object"),
        ('"diffusion"', r"Input should be an object"),
        ("{}", r"Unable to extract tag using discriminator 'family'"),
    ],
)
def test_what_is_no_card_is_refused(text, message):
    assert re.match(rf"{message}", fault(text))


@pytest.mark.parametrize("spec", [2, 3, 10**30, 10**4000])
@pytest.mark.parametrize("extra", [{}, {"family": "quantum"}, {"new_field": 1}])
def test_a_card_from_the_future_is_told_as_such(spec, extra, card_data):
    message = fault(card_data("diffusion") | {"spec": spec} | extra)
    assert re.match(
        r"card.json: the card is of version [0-9]+…?, but this purify-audit reads version 1:"
        r" install a newer one$",
        message,
    )


@pytest.mark.parametrize("spec", [0, -1, "1", None, [1], 1.5])
def test_a_spec_that_never_was_is_refused(spec, card_data):
    assert fault(card_data("feedforward") | {"spec": spec}).startswith("field 'feedforward.spec'")


# --- fields -------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_no_field_but_those_with_a_default_may_be_missing(family, card_data):
    data = card_data(family)
    for name in data:
        message = fault(changed(data, name, ...))
        tag = "classifier" if family in ("cnn", "cifar-resnet") else family
        where = "" if name == "family" else f"field '{tag}.{name}': "
        assert re.match(rf"{where}(Field required|Unable to extract tag)", message)


@pytest.mark.parametrize("family", EVERY_FAMILY)
@pytest.mark.parametrize("place", ["", "image.", "provenance."])
def test_an_unknown_field_is_refused(family, place, card_data):
    message = fault(changed(card_data(family), f"{place}colour", "red"))
    assert re.search(rf"\.{place}colour': Extra inputs are not permitted$", message)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("name", 3, "valid string"),
        ("name", "", "at least 1 character"),
        ("name", "n" * 201, "at most 200 characters"),
        ("image", [1, 8, 8], "an object"),
        ("image.channels", "1", "valid integer"),
        ("image.channels", True, "valid integer"),
        ("image.channels", 1.5, "valid integer"),
        ("image.channels", 0, "greater than or equal to 1"),
        ("image.channels", 65, "less than or equal to 64"),
        ("image.height", -8, "greater than or equal to 1"),
        ("image.width", 8193, "less than or equal to 8192"),
        ("image.width", 10**30, "less than or equal to 8192"),
        ("provenance.licence", None, "valid string"),
        ("network", None, "an object"),
        ("network.width", 8.5, "valid integer"),
        ("network.width", 4098, "less than or equal to 4096"),
        ("network.multipliers", 2, "valid array"),
        ("network.multipliers", [1] * 9, "at most 8 items"),
        ("network.multipliers.1", 65, "less than or equal to 64"),
        ("network.blocks", 17, "less than or equal to 16"),
        ("network.attention", [0] * 9, "at most 8 items"),
        ("network.groups", 0, "greater than or equal to 1"),
        ("prediction", "noise", "'eps', 'x0', 'v' or 'score'"),
        ("time_conditioning", None, "'index', 'continuous' or 'sigma'"),
        ("schedule", "linear", "an object"),
        ("schedule.kind", "sigmoid", "'linear', 'cosine', 'vp'"),
        ("data_range", [0], "Field required"),
        ("data_range", [0, 0.5, 1], "at most 2 items"),
        ("data_range", [1, 1], "not increasing"),
        ("data_range", [1, -1], "not increasing"),
        ("data_range.0", float("nan"), "finite number"),
        ("data_range.0", float("-inf"), "finite number"),
        ("data_range.1", "1", "valid number"),
        ("learned_variance", 1, "valid boolean"),
        ("t_star", 0, "greater than or equal to 1"),
        ("t_star", "20", "valid integer"),
        ("sampler", {}, "Unable to extract tag"),
        ("sampler.kind", "no-such-kind", "'ddpm', 'ddim', 'vp-sde', 'vp-ode', 'one-step'"),
        ("sampler.kind", "x\n\x1b[31m\u202e", r"Input tag 'x\\n\\x1b\[31m\\u202e' found"),
    ],
)
def test_a_wrong_value_is_refused_by_name(path, value, message, card_data):
    found = fault(changed(card_data("diffusion") | {"learned_variance": False}, path, value))
    names = "".join(f".*{re.escape(name)}" for name in path.split(".") if name != "kind")
    assert re.match(rf"field 'diffusion{names}'?.*: .*{message}", found)


@pytest.mark.parametrize(
    ("family", "path", "value", "message"),
    [
        ("diffusion", "schedule.steps", 100_001, "less than or equal to 100000"),
        ("diffusion", "schedule.beta_start", 0, "greater than 0"),
        ("diffusion", "schedule.beta_end", 1, "less than 1"),
        ("diffusion", "schedule.beta_end", float("inf"), "finite number"),
        ("diffusion", "sampler.rounds", 0, "greater than or equal to 1"),
        ("diffusion", "sampler.rounds", 1001, "less than or equal to 1000"),
        ("diffusion", "sampler.clamp", "yes", "valid boolean"),
        ("diffusion", "sampler.steps", 0, "greater than or equal to 1"),
        ("diffusion", "sampler.eta", 0.5, "Extra inputs are not permitted"),
        ("feedforward", "sigma", -0.1, "greater than or equal to 0"),
        ("feedforward", "sigma", float("nan"), "finite number"),
        ("feedforward", "data_range", [0, 0], "not increasing"),
        ("feedforward", "network.widths", [], "at least 1 item"),
        ("feedforward", "network.widths", [2, 0], "greater than or equal to 1"),
        ("transform", "transform.size", 16, "less than or equal to 15"),
        ("transform", "transform.kind", "blur", "'identity', 'bit-depth', 'jpeg'"),
        ("cnn", "classes", 1, "greater than or equal to 2"),
        ("cnn", "classes", 10**6, "less than or equal to 100000"),
        ("cnn", "std", [0], "greater than 0"),
        ("cnn", "std", [0.5, 0.5], "mean and std need one number for each of 1"),
        ("cnn", "mean", [], "mean and std need one number for each of 1"),
        ("cnn", "network.arch", "vgg", "'cnn', 'cifar-resnet'"),
        ("cifar-resnet", "network.depth", 9, "depth 9 is not 6n [+] 2"),
        ("cifar-resnet", "network.depth", 1208, "less than or equal to 1202"),
    ],
)
def test_out_of_range_values_of_every_family(family, path, value, message, card_data):
    data = card_data(family)
    data.setdefault("sigma", 0.0) if family == "feedforward" else None
    assert re.search(message, fault(changed(data, path, value)))


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@settings(derandomize=True, database=None, deadline=None, max_examples=200)
@given(data=st.data())
def test_any_value_anywhere_is_accepted_or_refused_in_one_line(data):
    card = example_card(data.draw(st.sampled_from(EVERY_FAMILY)))
    places = list(card) + [
        f"{name}.{inner}"
        for name, value in card.items()
        if isinstance(value, dict)
        for inner in value
    ]
    card = changed(card, data.draw(st.sampled_from(places)), data.draw(JSON_VALUES))
    message = ""
    try:
        parse_card(json.dumps(card), "test")
    except CardError as error:
        message = str(error)
    assert message.isprintable()


# --- fields that must agree ---------------------------------------------------------------------


def test_a_network_must_be_buildable(card_data):
    def refusal(**network):
        data = card_data("diffusion")
        return fault(data | {"network": data["network"] | network})

    assert "width 4 is not a multiple of groups 3" in refusal(groups=3)
    assert "width 3 must be even" in refusal(width=3, groups=1)
    assert "multipliers': Tuple should have at least 1 item" in refusal(multipliers=[])


@pytest.mark.parametrize("family", ["diffusion", "feedforward"])
def test_pixels_must_halve_at_every_level(family, card_data, make_card):
    levels = {"diffusion": {"multipliers": [1, 1, 1]}, "feedforward": {"widths": [2, 2, 2]}}
    data = card_data(family)
    data["network"] |= levels[family]
    for height, width in ((8, 6), (6, 8), (7, 7)):
        image = {"channels": 1, "height": height, "width": width}
        message = fault(data | {"image": image})
        assert f"{height} x {width} pixels cannot be halved 2 times" in message
    image = {"channels": 1, "height": 4, "width": 12}
    assert make_card(family, network=data["network"], image=image).image.shape == (1, 4, 12)


def test_t_star_lies_in_the_schedule(card_data, make_card):
    assert make_card(t_star=100).t_star == 100
    assert "t_star 101 is beyond the 100 steps" in fault(card_data("diffusion") | {"t_star": 101})


@pytest.mark.parametrize("kind", ["ddpm", "ddim"])
@pytest.mark.parametrize("name", ["steps", "stride"])
def test_no_more_steps_than_t_star(kind, name, card_data, make_card):
    assert make_card(sampler={"kind": kind, name: 20}).t_star == 20
    message = fault(card_data("diffusion") | {"sampler": {"kind": kind, name: 21}})
    assert "21 is more steps or stride than t_star 20" in message


def test_steps_or_stride(card_data):
    sampler = {"kind": "ddim", "steps": 2, "stride": 2}
    assert "give steps or stride, not both" in fault(card_data("diffusion") | {"sampler": sampler})


@pytest.mark.parametrize(
    ("rounds", "steps", "length"),
    [(1, 2**24, 2**24 + 1), (2, 2**23, 2**23 + 1), (1000, 16_777, 16_778)],
)
def test_noise_for_all_rounds_has_its_own_addresses(rounds, steps, length, card_data):
    schedule = {"kind": "vp", "steps": 100}
    sampler = {"kind": "vp-sde", "rounds": rounds, "steps": steps}
    data = card_data("diffusion") | {"schedule": schedule, "sampler": sampler}
    assert f"{rounds} rounds of {length} steps outrun the noise" in fault(data)


def test_rounds_of_all_steps_count_t_star(card_data, make_card):
    schedule, sampler = {"kind": "linear", "steps": 100_000}, {"kind": "ddpm", "rounds": 1000}
    card = make_card(schedule=schedule, sampler=sampler, t_star=16_776)
    assert card.sampler.rounds * (card.t_star + 1) <= 2**24
    data = card_data("diffusion") | {"schedule": schedule, "sampler": sampler, "t_star": 16_777}
    assert "1000 rounds of 16778 steps outrun the noise" in fault(data)


def test_a_learned_variance_needs_a_network_that_learned_it(card_data, make_card):
    sampler = {"kind": "ddpm", "variance": "learned-range"}
    assert make_card(sampler=sampler, learned_variance=True).learned_variance
    message = fault(card_data("diffusion") | {"sampler": sampler})
    assert "variance learned-range needs a network with learned_variance" in message


@pytest.mark.parametrize("kind", ["vp-sde", "vp-ode"])
def test_continuous_samplers_need_a_continuous_schedule(kind, card_data, make_card):
    for schedule in ("linear", "vp"):
        card = make_card(sampler={"kind": kind}, schedule={"kind": schedule, "steps": 100})
        assert card.sampler.kind == kind
    data = card_data("diffusion") | {"sampler": {"kind": kind}, "schedule": {"kind": "cosine"}}
    assert f"the {kind} sampler needs a linear or vp schedule" in fault(data)


@pytest.mark.parametrize("kind", ["vp-sde", "vp-ode"])
@pytest.mark.parametrize(
    ("length", "steps", "told"),
    [(100, 20_000, 20_000), (100, 40_000, 40_000), (100_000, None, 20)],
)
def test_steps_of_time_outlast_what_is_left_out(kind, length, steps, told, card_data):
    schedule, sampler = {"kind": "vp", "steps": length}, {"kind": kind, "steps": steps}
    data = card_data("diffusion") | {"schedule": schedule, "sampler": sampler}
    assert f"{told} steps are shorter than the 1e-05 left out" in fault(data)


@pytest.mark.parametrize("kind", ["ddpm", "ddim", "one-step"])
@pytest.mark.parametrize("schedule", ["linear", "cosine", "vp"])
def test_discrete_samplers_take_every_schedule(kind, schedule, make_card):
    card = make_card(sampler={"kind": kind}, schedule={"kind": schedule})
    assert isinstance(card, DiffusionCard)
    assert isinstance(card.schedule, CosineSchedule) is (schedule == "cosine")


# --- messages -----------------------------------------------------------------------------------


def test_foreign_text_is_made_printable():
    assert printable("conv.weight") == "conv.weight"
    assert printable("größe ≤ 2") == "größe ≤ 2"
    assert printable("a\nb\t\x1b[2J\x7f") == r"a\nb\t\x1b[2J\x7f"
    assert printable("\ud800 \u202e \u2028") == r"\ud800 \u202e \u2028"
    assert printable("n" * 10**6) == "n" * 300 + "…"


def test_a_hostile_field_name_cannot_break_the_line(card_data):
    for name in ("evil\nTraceback", "\x1b[2J", "\u2028", "n" * 10**6):
        message = fault(card_data("transform") | {name: 1})
        assert printable(name)[:200] in message


def test_reading_a_huge_card_takes_few_calls(card_data):
    fields = card_data("feedforward") | {f"field{n}": n for n in range(50_000)}
    widths = changed(card_data("feedforward"), "network.widths", [1] * 10**6)
    for card in (fields, widths):
        assert calls(lambda c=card: fault(c))[1] < 2_000_000


def test_a_transformation_needs_no_weights(make_card):
    assert isinstance(make_card("transform"), TransformCard)
