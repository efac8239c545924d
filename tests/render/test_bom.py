"""CycloneDX: valid by the official schema, every estimate there, the same bytes again."""

import json
import re
from pathlib import Path

import jsonschema
import pytest
from referencing import Registry, Resource
from render_support import DIGEST, HOSTILE, hostile_report, many_findings, model, report, started

from purify_audit.render.bom import ml_bom
from purify_audit.render.untested import LAST

FOLDER = Path(__file__).parents[1] / "schemas"


@pytest.fixture(scope="module")
def validator():
    names = ("bom-1.6", "jsf-0.82", "spdx")
    texts = {n: (FOLDER / f"{n}.SNAPSHOT.schema.json").read_text("utf-8") for n in names}
    schemas = {name: json.loads(text) for name, text in texts.items()}
    base = schemas["bom-1.6"]["$id"].rpartition("/")[0]
    resources = [
        (f"{base}/{name}.SNAPSHOT.schema.json", Resource.from_contents(schema))
        for name, schema in schemas.items()
    ]
    kind = jsonschema.Draft7Validator
    return kind(
        schemas["bom-1.6"],
        registry=Registry().with_resources(resources),
        format_checker=kind.FORMAT_CHECKER,
    )


def read(validator, made):
    text = ml_bom(made)
    assert text == ml_bom(made)
    bom = json.loads(text)
    validator.validate(bom)
    return bom


@pytest.mark.parametrize("attacked", [True, False])
def test_every_estimate_is_a_metric(validator, attacked):
    made = report(attacked=attacked)
    card = read(validator, made)["components"][0]["modelCard"]
    found = card["quantitativeAnalysis"]["performanceMetrics"]
    assert [(m["type"], float(m["value"])) for m in found] == [
        (e.metric, e.value) for e in made.estimates
    ]
    assert found[0]["confidenceInterval"] == {"lowerBound": "0.4", "upperBound": "0.625"}
    assert found[0]["slice"] == (
        "norm=l2; probe=sign; eps=0.15; images=32; level=0.95; method=t on images"
    )
    assert "confidenceInterval" not in found[2]
    assert card["considerations"]["technicalLimitations"][-1] == LAST


def test_components(validator):
    purifier, classifier = read(validator, report())["components"]
    assert {c["type"] for c in (purifier, classifier)} == {"machine-learning-model"}
    assert purifier["hashes"] == [{"alg": "SHA-256", "content": DIGEST}]
    assert purifier["name"] == "purifier"
    assert purifier["bom-ref"] != classifier["bom-ref"]
    assert len(read(validator, report(attacked=False))["components"]) == 1


def test_the_architecture_where_there_is_one(validator, make_card):
    of = model().model_copy(update={"card": make_card("diffusion")})
    made = report(checkpoint=of)
    told = read(validator, made)["components"][0]["modelCard"]["modelParameters"]
    assert (told["architectureFamily"], told["modelArchitecture"]) == ("diffusion", "unet")
    judge = report(classifier=model().model_copy(update={"card": make_card("cnn")}))
    told = read(validator, judge)["components"][1]["modelCard"]["modelParameters"]
    assert (told["task"], told["modelArchitecture"]) == ("image classification", "cnn")


def test_the_serial_number_follows_from_the_report(validator):
    first = read(validator, report())
    assert re.fullmatch(r"urn:uuid:[0-9a-f-]{36}", first["serialNumber"])
    other = report(run=report().run.model_copy(update={"body_sha256": "f" * 64}))
    assert read(validator, other)["serialNumber"] != first["serialNumber"]
    unsaved = report(run=None)
    found = read(validator, unsaved)
    assert found["metadata"]["properties"][0]["value"] == unsaved.body_sha256()


@pytest.mark.parametrize(
    ("at", "stamp"),
    [
        ("2027-01-31T12:00:00+02:00", "2027-01-31T12:00:00+02:00"),
        ("2027-01-31T12:00:00", None),
        ("yesterday", None),
    ],
)
def test_a_timestamp_where_the_report_has_one(validator, at, stamp):
    bom = read(validator, report(run=started("c", at)))
    assert bom["metadata"].get("timestamp") == stamp
    assert "timestamp" not in read(validator, report(run=None))["metadata"]


def test_hostile_text_is_text(validator):
    bom = read(validator, hostile_report())
    assert bom["components"][0]["name"] == HOSTILE
    assert "hashes" not in bom["components"][0]


def test_many_findings_change_nothing(validator):
    bom = read(validator, many_findings())
    assert len(json.dumps(bom)) < 20_000
