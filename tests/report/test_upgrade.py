"""Reports, rows and baselines of earlier report schemas, read by this version."""

import hashlib
import json

import pytest
from page_support import NEEDS_MODELS, audited
from safetensors.numpy import load_file, safe_open, save_file

from purify_audit.core.digests import file_sha256
from purify_audit.core.errors import ReportError
from purify_audit.gate.baseline import open_baseline, save_baseline, values_of
from purify_audit.report.saved import open_report
from purify_audit.report.schema import parse_report, read_report
from purify_audit.report.upgrade import upgrade
from purify_audit.spec.load_options import LoadOptions
from purify_audit.statistics.attack_rows import save_attacks
from purify_audit.statistics.compression_rows import save_samples

RENAMED = {  # place, old name, new name
    "plan": {"reading": "load_options", "classifier_reading": "classifier_load_options"},
    "plan.attack": {"leave": "early_stop"},
    "data": {"brought_digest": "user_images_digest"},
    "attack": {
        "compresses_yet_falls": "fooled_despite_compression",
        "stands_without_compressing": "robust_without_compression",
    },
    "run": {"settled": "tuning"},
}


def renamed(record, names):
    """A record's old names for its new ones, in the same order."""
    old = {new: name for name, new in names.items()}
    assert set(old) <= set(record)
    for key in list(record):
        record[old.get(key, key)] = record.pop(key)


def as_version(version, report, **changes):
    """The bytes of a report as schema 1.0 or 2.0 wrote it."""
    document = json.loads(report.model_dump_json())
    for name in ("targets", "fresh_draws", "fresh_steps"):
        del document["plan"]["attack"][name]
    del document["attack"]["convergence"]
    for image in document["attack"]["images"]:
        del image["broken_by"]
    for place, names in RENAMED.items() if version == "1.0" else ():
        record = document
        for part in place.split("."):
            record = record[part]
        renamed(record, names)
    for image in document["attack"]["images"] if version == "1.0" else ():
        renamed(image, {"falls_at": "fooling_radius"})
    document |= {"schema_version": version, **changes}
    run = document.pop("run")

    def text():
        return json.dumps(document | {"run": run}, indent=1, ensure_ascii=False)

    body = text().rpartition('\n "run": ')[0]
    run["body_sha256"] = hashlib.sha256(body.encode()).hexdigest()
    return text().encode()


def as_it_is_read(report):
    """What an earlier version could say: no targets, and fresh attacks of the aligned budget."""
    plan, attack = report.plan.attack, report.attack
    budget = {"targets": 0, "fresh_draws": plan.draws, "fresh_steps": plan.steps}
    images = tuple(v.model_copy(update={"broken_by": None}) for v in attack.images)
    return report.model_copy(
        update={
            "plan": report.plan.model_copy(update={"attack": plan.model_copy(update=budget)}),
            "attack": attack.model_copy(update={"convergence": None, "images": images}),
        }
    )


@pytest.fixture(params=["1.0", "2.0"])
def version(request):
    return request.param


@pytest.fixture
def saved(tmp_path, version):
    """The path of a saved report of a schema with its rows, and the report as it is now."""
    report, samples, attacks = audited()
    pgd = report.plan.attack.model_copy(update={"optimiser": "pgd", "draws": 3, "steps": 7})
    report = report.model_copy(update={"plan": report.plan.model_copy(update={"attack": pgd})})
    rows, attacked = tmp_path / "old.rows.safetensors", tmp_path / "old.attack.safetensors"
    save_samples(rows, samples)
    save_attacks(attacked, attacks)
    with safe_open(attacked, "np") as file:
        metadata = file.metadata()
    columns = {n: c for n, c in load_file(attacked).items() if not n.endswith(".made_by")}
    if version == "1.0":
        columns = {
            n.replace("fooling_radius", "falls_at").replace("example_images", "portraits"): c
            for n, c in columns.items()
        }
        assert {"aligned.1.falls_at", "portraits.ids"} <= set(columns)
    save_file(columns, attacked, metadata)
    report = report.model_copy(
        update={
            "rows_sha256": file_sha256(rows),
            "attacks_sha256": file_sha256(attacked),
            "run": report.run.model_copy(
                update={"rows_file": rows.name, "attacks_file": attacked.name}
            ),
        }
    )
    path = tmp_path / "old.json"
    path.write_bytes(as_version(version, report))
    return path, report


def without_digest(report):
    return report.model_copy(
        update={"run": report.run.model_copy(update={"body_sha256": "0" * 64})}
    )


@NEEDS_MODELS
class TestEarlierVersions:
    def test_a_report_reads_as_if_it_were_new(self, saved):
        path, report = saved
        old = read_report(path)
        assert old.schema_version == "2.1"
        assert without_digest(old) == without_digest(as_it_is_read(report))
        assert (old.plan.attack.fresh_draws, old.plan.attack.fresh_steps) == (3, 7)
        body = path.read_bytes().rpartition(b'\n "run": ')[0]
        assert old.digest == hashlib.sha256(body).hexdigest()

    def test_its_rows_are_read(self, saved):
        samples, attacks = open_report(saved[0]).samples(), open_report(saved[0]).attacks()
        assert samples is not None
        assert attacks.example_images is not None
        assert (attacks.find("aligned").fooling_radius > 0).all()
        assert all((attack.made_by == -1).all() for attack in attacks.scored)

    def test_a_changed_report_is_refused(self, saved):
        path, _ = saved
        text = path.read_text(encoding="utf-8")
        changed = text.replace('"draws": 3', '"draws": 4')
        assert changed != text
        path.write_text(changed, encoding="utf-8")
        with pytest.raises(ReportError, match="was changed after it was written"):
            read_report(path)

    def test_names_that_users_chose_stay(self, saved, version):
        path, report = saved
        options = LoadOptions(arguments={"reading": "a", "leave": "b"})
        plan = report.plan.model_copy(update={"load_options": options})
        old = parse_report(as_version(version, report.model_copy(update={"plan": plan})), path)
        assert old.plan.load_options == options

    def test_a_baseline_is_read_and_saved_again(self, saved, version):
        path, report = saved
        file = path.with_name("baseline.safetensors")
        save_baseline(file, values_of(read_report(path), path.parent))
        with safe_open(file, "np") as opened:
            metadata = opened.metadata() | {"report": as_version(version, report).decode()}
        again = path.with_name("again.safetensors")
        save_file(load_file(file), again, metadata)
        for each in (file, again):
            assert open_baseline(each).report.estimates == report.estimates
        save_baseline(file, open_baseline(again))
        assert open_baseline(file).report.estimates == report.estimates


@NEEDS_MODELS
def test_a_report_without_an_attack_is_read(version, tmp_path):
    document = json.loads(audited()[0].model_dump_json())
    document["plan"]["attack"] = document["attack"] = None
    old = document | {"schema_version": version}
    assert upgrade(json.dumps(old).encode(), tmp_path) == json.dumps(document).encode()
    assert upgrade(json.dumps(document).encode(), tmp_path) == json.dumps(document).encode()


@NEEDS_MODELS
@pytest.mark.parametrize("version", ["3.0", "0.9", 2])
def test_other_versions_are_refused_with_what_to_do(version, tmp_path):
    raw = as_version("1.0", audited()[0], schema_version=version, tool_version="9.8.7")
    with pytest.raises(ReportError) as refused:
        parse_report(raw, tmp_path / "report.json")
    assert str(refused.value) == (
        f"{tmp_path / 'report.json'}: was written by purify-audit 9.8.7 in report schema {version},"
        " and this version reads 1.0, 2.0 and 2.1: read it with the version that wrote it, or audit"
        " again"
    )
