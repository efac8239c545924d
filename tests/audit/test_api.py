"""The functions of the package root: the same numbers as the command line, and clear errors."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import purify_audit as pa
from purify_audit.audit.result import Progress
from purify_audit.audit.save import RunRecord, save_result
from purify_audit.core.errors import InputError, PlanError
from purify_audit.core.noise import Noise, Stream
from purify_audit.models.runner import Stopped

DDPM = Path(__file__).parents[2] / "models" / "digits-ddpm.safetensors"
pytestmark = pytest.mark.skipif(not DDPM.is_file(), reason="the shipped models are not here")
QUICK = {"images": 4, "t_star": 20, "sampler": "ddim:steps=2"}
OPTIONS = ("--images", 4, "--t-star", 20, "--sampler", "ddim:steps=2")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def same(result, path):
    """Whether a result's report is the one in a file, but for how it was made."""
    report = pa.Report.model_validate_json(Path(path).read_text(encoding="utf-8"))
    left_out = {"run", "rows_sha256", "attacks_sha256"}
    return result.report.model_dump(exclude=left_out) == report.model_dump(exclude=left_out)


def test_compress_is_the_command(run_cli, here):
    probes = ["sign", "power:iterations=2"]
    result = pa.compress(DDPM, eps="0.15,0.2", probes=probes, draws=2, directions=2, **QUICK)
    shown = [part for probe in probes for part in ("--probe", probe)]
    code, _, err = run_cli(
        "compress", DDPM, "--eps", "0.15,0.2", *shown, "--draws", 2, "--directions", 2, *OPTIONS
    )
    assert code == 0, err
    assert same(result, "report.json")


def test_attack_is_the_command(run_cli, here):
    result = pa.attack(DDPM, steps=2, held_out=2, **QUICK)
    run_cli("attack", DDPM, "--steps", 2, "--held-out", 2, *OPTIONS)
    assert same(result, "verify.json")
    assert result.attacks.ids.shape == (4,)


def test_a_saved_report_is_attacked_and_reproduced(here):
    first = pa.compress(DDPM, draws=2, directions=2, **QUICK)
    save_result(here / "first.json", first, RunRecord("a test", "now", 1.0, 1))
    result = pa.attack("first.json", steps=1, held_out=1)
    assert result.report.find("compression_rate", "l2") == first.report.find(
        "compression_rate", "l2"
    )
    assert result.report.attack is not None
    found = pa.verify("first.json", cells=3)
    assert (len(found.cells), found.different, dict(found.environment)) == (3, (), {})


def test_sweep_and_compare(here):
    points = pa.sweep(DDPM, t_star=[5, 20], attack=False, images=4, sampler=["ddim:steps=2"])
    assert [point.t_star for point, _ in points] == [5, 20]
    assert all(result.attacks is None for _, result in points)
    compared = pa.compare(*(result.report for _, result in points))
    assert len(compared.rows) == 2


def test_models_and_images():
    images = pa.load_images("digits").select([0, 1])
    x = torch.from_numpy(images.pixels.copy())
    purifier = pa.load_purifier(DDPM.with_name("digits-autoencoder.safetensors"), device="cpu")
    noise = Noise(0, tuple(images.ids.tolist()), (0, 0), Stream.PURIFY)
    classifier = pa.load_classifier(
        DDPM.with_name("digits-classifier.safetensors"), images.image_shape, device="cpu"
    )
    labels = classifier(purifier(x, noise)).argmax(1).numpy()
    assert np.array_equal(labels, images.labels)


def test_settings_that_there_are_not():
    with pytest.raises(PlanError, match="no setting 'image'; 'images' may be meant"):
        pa.compress("identity", image=4)
    with pytest.raises(PlanError, match="no setting 'stepss'; 'steps' may be meant"):
        pa.attack("identity", stepss=4)
    with pytest.raises(InputError, match="8 / 255"):
        pa.compress("identity", eps="8 / 255,x")


def test_a_run_that_is_stopped_is_partial():
    def stop(evaluations):
        raise Stopped

    result = pa.compress("identity", images=4, progress=Progress(stop))
    assert result.report.status == "partial"


def test_importing_the_package_is_cheap():
    code = "import sys, purify_audit as pa;"
    code += "print(pa.__version__, len(pa.__all__), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [pa.__version__, str(len(pa.__all__)), "False"]
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        pa.nothing  # noqa: B018


def test_public_names_are_functions_whatever_was_imported_before():
    """A folder of the same name as a function would hide it once it is imported."""
    code = "import json, purify_audit.cli, purify_audit.audit.api, purify_audit as pa;"
    code += "print(json.dumps([callable(getattr(pa, n)) for n in pa.__all__]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [True] * len(pa.__all__)
