"""Whether a saved report is about the models that lie here: every kind of digest, and none run."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from subjects import DIGITS, PROVENANCE, grey_images, run

from purify_audit.models.formats.diffusers_folder import files_of, folder_sha256
from purify_audit.models.purifiers.transforms import TransformPurifier, parse_transform
from purify_audit.models.user_code.importing import code_sha256
from purify_audit.report.schema import ModelInfo, RunInfo
from purify_audit.spec.architectures import CodeArgs, GraphArgs
from purify_audit.spec.card import CodeCard, GraphCard

POLICY = '[[gate.rule]]\nid = "a"\nmetric = "compression_rate"\nmax = 1\n'
CODE = "def make(weights='w', n=3):\n    return lambda x: x\n"
RAISES = "raise RuntimeError('imported')\n"


@pytest.fixture(scope="module")
def report():
    purifier = TransformPurifier(parse_transform("identity", DIGITS))
    return run(purifier, grey_images(4), draws=1, directions=2).report


@pytest.fixture
def saved(report, tmp_path, monkeypatch, make_card):
    """(source, sha256, card=…, **changes of the report) -> its file, in the current folder."""
    monkeypatch.chdir(tmp_path)

    def save(source, sha256, card=None, name="report.json", **changes):
        card = make_card("feedforward") if card is None else card
        model = ModelInfo(source=source, sha256=sha256, parameters=0, card=card)
        made = report.model_copy(update={"checkpoint": model} | changes)
        run = RunInfo(
            command="test",
            started="",
            seconds=0,
            evaluations=0,
            rows_file=None,
            body_sha256=made.body_sha256(),
        )
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(made.model_copy(update={"run": run}).model_dump_json(indent=1))
        return name

    return save


def sha256(text):
    return hashlib.sha256(text.encode()).hexdigest()


def code_card(factory, **arguments):
    network = CodeArgs(factory=factory, arguments=arguments)
    return CodeCard(
        name="code", image=DIGITS, provenance=PROVENANCE, network=network, randomised=True
    )


def test_current_then_stale(saved, run_cli):
    Path("m.bin").write_text("weights")
    saved("m.bin", sha256("weights"))
    code, out, err = run_cli("stale")
    assert (code, err) == (0, "")
    assert out == f"report.json is current\n  purifier    m.bin {sha256('weights')[:12]}\n"
    Path("m.bin").write_text("other weights")
    code, out, _ = run_cli("stale", "report.json")
    assert code == 1
    assert out == (
        f"report.json is stale\n  purifier    m.bin has changed from {sha256('weights')[:12]}"
        f" to {sha256('other weights')[:12]}\nAudit again: `purify-audit run`.\n"
    )


def test_the_old_name_of_the_command_works(saved, run_cli):
    Path("m.bin").write_text("weights")
    saved("m.bin", sha256("weights"))
    assert run_cli("fresh") == run_cli("stale")


def test_the_checkpoint_may_lie_beside_the_report(saved, run_cli):
    name = saved("m.bin", sha256("weights"), name="audit/report.json")
    Path("audit/m.bin").write_text("weights")
    assert run_cli("stale", name)[0] == 0
    Path("m.bin").write_text("the current folder goes before")
    assert run_cli("stale", name)[0] == 1


def test_a_named_checkpoint_goes_before_what_the_report_says(saved, run_cli):
    Path("m.bin").write_text("weights")
    Path("new.bin").write_text("new")
    saved("m.bin", sha256("weights"))
    assert run_cli("stale", "--checkpoint", "new.bin")[0] == 1
    saved("gone.bin", sha256("new"))
    assert run_cli("stale", "--checkpoint", "new.bin")[0] == 0


def test_the_policy_is_named(saved, run_cli):
    Path("m.bin").write_text("weights")
    saved("m.bin", sha256("weights"))
    Path("purify-audit.toml").write_text(POLICY)
    expected = f"purify-audit.toml {sha256(POLICY)[:12]}, 1 rule\n"
    assert run_cli("stale")[1].endswith(f"  policy      {expected}")
    Path("elsewhere.toml").write_text(POLICY)
    assert "  policy      elsewhere.toml" in run_cli("stale", "--policy", "elsewhere.toml")[1]
    Path("purify-audit.toml").write_text("images = 3\n")  # settings, and no policy
    assert "policy" not in run_cli("stale")[1]


def test_the_classifier_is_checked_too(saved, run_cli, make_card):
    Path("m.bin").write_text("weights")
    Path("c.bin").write_text("classifier")
    judge = ModelInfo(
        source="c.bin", sha256=sha256("classifier"), parameters=0, card=make_card("cnn")
    )
    saved("m.bin", sha256("weights"), classifier=judge)
    assert f"  classifier  c.bin {judge.sha256[:12]}\n" in run_cli("stale")[1]
    Path("c.bin").write_text("another")
    code, out, _ = run_cli("stale")
    assert code == 1
    assert f"c.bin has changed from {judge.sha256[:12]} to {sha256('another')[:12]}" in out
    Path("c.bin").unlink()
    code, out, _ = run_cli("stale")
    assert code == 0
    assert f"c.bin {judge.sha256[:12]}, not checked: its file was not found" in out


def test_what_cannot_be_used_is_reported(saved, refused):
    assert refused("stale") == "report.json: cannot be read: No such file or directory"
    Path("report.json").write_text("{}")
    assert refused("stale").startswith("report.json: is not a report: field ")
    saved("gone.bin", sha256("weights"))
    assert refused("stale") == (
        "report.json: whether it matches gone.bin cannot be checked: its file was not found;"
        " give the file with --checkpoint, or audit again"
    )
    message = refused("stale", "--checkpoint", "none.bin")
    assert message == "none.bin: no such file"


def test_an_invalid_policy_is_reported(saved, refused):
    Path("m.bin").write_text("weights")
    saved("m.bin", sha256("weights"))
    Path("purify-audit.toml").write_text(POLICY.replace("max", "maxx"))
    assert refused("stale") == "purify-audit.toml, line 4: no key 'maxx'; 'max' may be meant"
    message = refused("stale", "--policy", "none.toml")
    assert message == "none.toml: cannot be read: No such file or directory"


def test_a_report_that_was_changed_is_refused(saved, refused):
    Path("m.bin").write_text("weights")
    name = saved("m.bin", sha256("weights"))
    data = json.loads(Path(name).read_text())
    data["estimates"][0]["value"] = 0.001
    Path(name).write_text(json.dumps(data))
    assert refused("stale").startswith("report.json: was changed after it was written")
    del data["run"]  # the digest goes with it
    Path(name).write_text(json.dumps(data))
    expected = "report.json: has no digest of its own, so it may have been changed"
    assert refused("stale") == expected


def test_a_transformation_is_its_settings(saved, run_cli):
    card = parse_transform("jpeg:quality=75", DIGITS)
    saved("jpeg:quality=75", sha256(card.model_dump_json()), card)
    assert run_cli("stale")[0] == 0
    saved("jpeg:quality=75", sha256("other settings"), card)
    assert run_cli("stale")[0] == 1


@pytest.mark.parametrize("source", ["jpeg:quality=75", "code.py:make"])
def test_a_file_cannot_be_named_for_what_is_none(source, saved, refused):
    Path("code.py").write_text(CODE)
    card = parse_transform(source, DIGITS) if "jpeg" in source else code_card(source)
    saved(source, sha256("any"), card)
    message = refused("stale", "--checkpoint", "code.py")
    assert message == f"{source}: is no file, so --checkpoint cannot name it"


def test_a_folder_is_its_configurations_and_weights(saved, run_cli):
    unet = Path("model/unet")
    unet.mkdir(parents=True)
    (unet / "config.json").write_text("{}")
    (unet / "diffusion_pytorch_model.safetensors").write_text("weights")
    folder = Path("model")
    saved("model", folder_sha256(folder, files_of(folder)))
    (folder / "README.md").write_text("not part of it")
    assert run_cli("stale")[0] == 0
    (unet / "config.json").write_text('{"a": 1}')
    assert run_cli("stale")[0] == 1


def test_a_graph_with_weights_elsewhere_is_not_checked(saved, refused, run_cli):
    Path("g.onnx").write_text("graph")
    card = GraphCard(
        name="graph",
        image=DIGITS,
        provenance=PROVENANCE,
        network=GraphArgs(container="onnx"),
    )
    saved("g.onnx", sha256("graph"), card)
    assert run_cli("stale")[0] == 0
    saved("g.onnx", sha256("graph and weights"), card)
    assert "the digest of a graph may cover weights in other files" in refused("stale")


def test_a_model_of_the_hub_is_not_checked(saved, refused):
    saved("hub:owner/name", sha256("weights"))
    assert "hub:owner/name cannot be checked: it is on a hub" in refused("stale")


@pytest.mark.parametrize(
    ("factory", "file"),
    [
        ("purifier_a.py:make", "purifier_a.py"),
        ("folder/purifier_b.py:make", "folder/purifier_b.py"),
        ("purifier_c:make", "purifier_c.py"),
        ("package_d.purifier:make", "package_d/purifier.py"),
        ("package_e:make", "package_e/__init__.py"),
    ],
)
def test_code_is_its_source_and_arguments(factory, file, saved, run_cli, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(tmp_path)
    source = Path(file)
    source.parent.mkdir(exist_ok=True)
    source.write_text(CODE)
    Path("w.bin").write_text("weights")
    card = code_card(factory, weights="w.bin", n="3")
    saved(factory, code_sha256(card.network), card)
    assert run_cli("stale")[0] == 0
    Path("w.bin").write_text("other weights")
    assert run_cli("stale")[0] == 1
    Path("w.bin").write_text("weights")
    source.write_text(RAISES + CODE)  # would end the command if it were imported
    code, out, err = run_cli("stale")
    assert (code, err) == (1, "")
    assert out.startswith("report.json is stale\n")


@pytest.mark.parametrize(
    "source",
    [
        "from elsewhere import make\n",
        "import functools\n@functools.cache\ndef make():\n    return abs\n",
        "make = object()\n",
        "def make(:\n",
        "def other():\n    pass\n",
    ],
)
def test_a_factory_that_its_file_does_not_define_is_not_checked(source, saved, refused):
    Path("code.py").write_text(source)
    saved("code.py:make", sha256("unknown"), code_card("code.py:make"))
    assert "code.py does not define it, so its source may be elsewhere" in refused("stale")


@pytest.mark.parametrize(
    ("factory", "doubt"),
    [
        ("registered", "its source cannot be located without importing it"),
        ("not.here:make", "its source file was not found"),
        ("gone.py:make", "its source file was not found"),
    ],
)
def test_code_that_is_not_here_is_not_checked(factory, doubt, saved, refused):
    saved(factory, sha256("unknown"), code_card(factory))
    assert doubt in refused("stale")


def test_a_name_that_no_file_can_have_is_not_checked(saved, refused):
    saved("a\0b", sha256("weights"))
    assert r"matches a\x00b cannot be checked: its file was not found" in refused("stale")
    saved("a" * 5000, sha256("weights"))
    assert "cannot be checked: its file was not found" in refused("stale")


def test_neither_torch_nor_numpy_is_needed(saved):
    Path("m.bin").write_text("weights")
    saved("m.bin", sha256("weights"))
    Path("purify-audit.toml").write_text(POLICY)
    program = (
        "import sys; sys.argv = ['purify-audit', 'stale']\n"
        "from purify_audit.cli import main\n"
        "try: main()\n"
        "except SystemExit as stop: print(stop.code, {'torch', 'numpy'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "0 set()", done.stderr
