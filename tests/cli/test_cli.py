"""The commands as a person runs them: exit codes, messages, signals, pipes and terminals."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from commands import run_in
from safetensors.numpy import load_file

from purify_audit import __version__
from purify_audit.report.schema import json_schema, read_report

ROOT = Path(__file__).parents[2]
DDPM = ROOT / "models" / "digits-ddpm.safetensors"
AUTOENCODER = ROOT / "models" / "digits-autoencoder.safetensors"
CLASSIFIER = ROOT / "models" / "digits-classifier.safetensors"
SHARED = ROOT.parent / "shared" / "data"
QUICK = ("--images", "8", "--eps", "0.15", "--draws", "2", "--directions", "2", "--t-star", "5")


def purify_audit(*arguments, cwd):
    return run_in(cwd, *arguments, columns="80")


def refused(result, message, code=2):
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    assert message in " ".join(result.stderr.split())


def test_version_and_help_answer_at_once_and_without_torch(tmp_path):
    assert purify_audit("--version", cwd=tmp_path).stdout == f"purify-audit {__version__}\n"
    code = (
        "import sys, purify_audit.cli as c\n"
        "try: c.app(['--help'])\nexcept SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False).returncode == 0


@pytest.mark.parametrize("arguments", [["compress"], ["compress", "x", "--nonsense"], ["nothing"]])
def test_wrong_usage_is_exit_2(tmp_path, arguments):
    assert purify_audit(*arguments, cwd=tmp_path).returncode == 2


def test_inspect_prints_card_count_and_digest(tmp_path):
    result = purify_audit("inspect", DDPM, cwd=tmp_path)
    assert result.returncode == 0
    assert '"t_star": 60' in result.stdout
    assert "551,905" in result.stdout
    card = json.loads(purify_audit("inspect", DDPM, "--json", cwd=tmp_path).stdout)
    assert card["card"]["family"] == "diffusion"
    assert len(card["sha256"]) == 64


def test_compress_with_only_a_checkpoint_uses_the_bundled_digits(tmp_path):
    result = purify_audit("compress", AUTOENCODER, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    for text in ("digits-autoencoder", "64 of digits", "sign", "lowfreq", "power", "report.json"):
        assert text in result.stdout
    report = read_report(tmp_path / "report.json")
    assert report.status == "complete"
    assert report.plan.draws == 1  # deterministic
    assert report.plan.eps == (0.15,)


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audited")
    result = purify_audit(
        "compress", DDPM, "--classifier", CLASSIFIER, *QUICK, "--out", "r.json", cwd=folder
    )
    assert result.returncode == 0, result.stderr
    return folder, result


def test_the_table_shows_what_was_measured(audited):
    folder, result = audited
    report = read_report(folder / "r.json")
    rate = next(e for e in report.estimates if (e.metric, e.norm) == ("compression_rate", "l2"))
    assert f"{rate.value:.3f}" in result.stdout
    assert "randomness" in result.stdout
    assert "on clean images and" in result.stdout


def test_the_report_keeps_its_schema_and_has_no_nan(audited):
    folder, _ = audited
    text = (folder / "r.json").read_text()
    data = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in the report"))
    for name in ("schema_version", "status", "findings", "plan", "environment", "citations"):
        assert name in data
    estimate = ["metric", "norm", "probe", "eps", "value", "lower", "upper", "level", "method"]
    assert list(data["estimates"][0]) == [*estimate, "n_images", "n_draws"]
    metrics = {e["metric"] for e in data["estimates"]}
    assert metrics == {
        "compression_rate",
        "rms_gain",
        "unaligned_ratio",
        "randomness_share",
        "clean_accuracy",
        "anchor_accuracy",
        "distance_anchor",
        "distance_purified",
        "distance_delta",
    }
    assert len(data["checkpoint"]["sha256"]) == 64


def test_rows_lie_beside_the_report(audited):
    folder, _ = audited
    rows = load_file(folder / "r.rows.safetensors")
    # 8 images x 2 draws x (2 sign + 2 lowfreq + 2 power)
    assert len(rows["probes.image"]) == 8 * 2 * 6
    assert np.isfinite(rows["probes.change_l2"]).all()


def test_a_second_run_writes_the_same_body(audited):
    folder, _ = audited
    purify_audit(
        "compress", DDPM, "--classifier", CLASSIFIER, *QUICK, "--out", "s.json", cwd=folder
    )
    first, second = read_report(folder / "r.json"), read_report(folder / "s.json")
    assert first.body() == second.body()
    assert first.run.body_sha256 == second.run.body_sha256
    assert first.run.rows_file != second.run.rows_file


def test_json_goes_to_standard_output_alone(tmp_path):
    result = purify_audit("compress", "identity", *QUICK[:4], "--json", cwd=tmp_path)
    assert json.loads(result.stdout)["status"] == "complete"


@pytest.mark.parametrize("cell", [(), ("--probe", "power", "--direction", 1), ("--draw", 1)])
def test_replay_gives_the_same_number(audited, cell):
    folder, _ = audited
    image = read_report(folder / "r.json").data.ids[3]
    result = purify_audit("replay", "r.json", "--image", image, *cell, cwd=folder)
    assert result.returncode == 0, result.stderr
    assert "the same number, bit for bit" in result.stdout


def test_replay_tells_a_changed_number(audited):
    folder, _ = audited
    from safetensors.numpy import save_file

    report = read_report(folder / "r.json")
    rows = load_file(folder / "r.rows.safetensors")
    rows["probes.change_l2"] = rows["probes.change_l2"] * 1.01
    save_file(rows, folder / "t.rows.safetensors")
    from purify_audit.core.digests import file_sha256

    digest = file_sha256(folder / "t.rows.safetensors")
    changed = report.model_copy(update={"rows_sha256": digest})
    run = {"rows_file": "t.rows.safetensors", "body_sha256": changed.body_sha256()}
    changed = changed.model_copy(update={"run": report.run.model_copy(update=run)})
    (folder / "t.json").write_text(changed.model_dump_json(indent=1))
    image = report.data.ids[0]
    result = purify_audit("replay", "t.json", "--image", image, cwd=folder)
    assert result.returncode == 3
    assert "DIFFERENT" in result.stdout


def test_replay_refuses_what_is_not_the_report(audited):
    folder, _ = audited
    text = (folder / "r.json").read_text()
    (folder / "forged.json").write_text(text.replace('"status": "complete"', '"status": "partial"'))
    refused(
        purify_audit("replay", "forged.json", "--image", 0, cwd=folder),
        "was changed after it was written",
    )
    refused(purify_audit("replay", "none.json", "--image", 0, cwd=folder), "cannot be read")
    (folder / "no.json").write_text("{}")
    refused(purify_audit("replay", "no.json", "--image", 0, cwd=folder), "is not a report")
    refused(
        purify_audit("replay", "r.json", "--image", 1, cwd=folder), "image 1 is not in the report"
    )
    refused(
        purify_audit("replay", "r.json", "--image", 0, "--probe", "sphere", cwd=folder),
        "no probe 'sphere'",
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.safetensors"], "nothing.safetensors: no such file"),
        (["jpg"], "jpeg"),
        (["jpeg:quality=0"], "quality"),
        ([CLASSIFIER], "is a classifier, not a purifier"),
        ([AUTOENCODER, "--t-star", "5"], "is no diffusion model"),
        ([AUTOENCODER, "--data", "nowhere"], "nowhere"),
        ([AUTOENCODER, "--eps", "8/0"], "--eps '8/0' is not a list of numbers"),
        ([AUTOENCODER, "--eps", "2"], "more than the pixel range"),
        ([AUTOENCODER, "--norm", "l3"], "norm"),
        ([AUTOENCODER, "--probe", "cone"], "probe 'cone'"),
        ([AUTOENCODER, "--probe", "power:block=x"], "block"),
        ([AUTOENCODER, "--images", "5000"], "450"),
        ([AUTOENCODER, "--ids", "a:b"], "--ids 'a:b' is not FIRST:LAST"),
        ([AUTOENCODER, "--device", "tpu"], "device 'tpu'"),
        ([AUTOENCODER, "--device", "cuda:77"], "device 'cuda:77'"),
        ([AUTOENCODER, "--out", "no/folder/r.json"], "does not exist"),
        ([AUTOENCODER, "--classifier", AUTOENCODER], "is a purifier, not a classifier"),
        ([DDPM, "--sampler", "euler"], "no sampler 'euler'"),
        ([DDPM, "--sampler", "ddim:eta=2"], "eta"),
        ([DDPM, "--t-star", "2000"], "t_star 2000"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_2(tmp_path, arguments, message):
    refused(purify_audit("compress", *arguments, cwd=tmp_path), message)


def test_a_report_that_cannot_be_written_is_refused_before_spending(tmp_path):
    (tmp_path / "r.json").mkdir()
    result = purify_audit("compress", "identity", "--images", "2", "--out", "r.json", cwd=tmp_path)
    refused(result, "is a folder")


def test_an_unexpected_error_is_exit_4_and_never_1(tmp_path):
    code = (
        "import purify_audit.cli as c, purify_audit.audit.subject as s\n"
        "def broken(*a): raise RuntimeError('the roof')\n"
        "s.prepare = broken\n"
        "c.main()"
    )
    command = [sys.executable, "-c", code, "compress", "identity"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    refused(result, "unexpected RuntimeError: the roof", code=4)


def test_a_closed_pipe_is_not_a_failed_gate(tmp_path):
    command = f"{sys.executable} -m purify_audit inspect {DDPM} | head -1; echo ${{PIPESTATUS[0]}}"
    result = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.stdout.splitlines()[-1] in ("0", "141")
    assert result.stderr == ""


def test_findings_of_an_error_are_exit_3(tmp_path):
    """A card that lies about the clock: the network does not denoise."""
    from purify_audit.models.checkpoint import load_tensors, read_checkpoint, save_checkpoint

    honest = read_checkpoint(DDPM)
    lying = honest.card.model_copy(update={"data_range": (0.0, 1.0)})
    save_checkpoint(tmp_path / "lying.safetensors", lying, load_tensors(honest))
    result = purify_audit("compress", "lying.safetensors", *QUICK, cwd=tmp_path)
    assert result.returncode == 3
    assert "PA106" in result.stdout
    assert read_report(tmp_path / "report.json").estimates == ()


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_writes_what_there_is(tmp_path, sent, code):
    command = [sys.executable, "-m", "purify_audit", "compress", str(DDPM), "--images", "450"]
    command += ["--t-star", "20", "--microbatch", "8", "--directions", "4", "--out", "p.json"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert "network evaluations to do" in process.stderr.readline()
    time.sleep(3)
    process.send_signal(sent)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "Traceback" not in err
    assert "PARTIAL" in out
    report = read_report(tmp_path / "p.json")
    assert report.status == "partial"
    assert len(report.data.ids) < 450
    assert all(e.n_images <= len(report.data.ids) for e in report.estimates)


def test_progress_goes_to_standard_error_or_nowhere(tmp_path):
    result = purify_audit("compress", "identity", "--images", "4", "--quiet", cwd=tmp_path)
    assert result.stderr == ""


@pytest.mark.skipif(not SHARED.exists(), reason="the shared CIFAR-10 images are not here")
def test_cifar_images_with_a_transformation_and_a_published_classifier(tmp_path):
    resnet, card = SHARED / "cifar10_resnet20.safetensors", ROOT / "examples/cifar10-resnet20.json"
    attached = purify_audit("attach", resnet, card, "resnet20.safetensors", cwd=tmp_path)
    assert attached.returncode == 0, attached.stderr
    result = purify_audit(
        *("compress", "bit-depth:bits=3", "--data", SHARED / "cifar10_test_lossless_1178.npz"),
        *("--ids", "0:1000", "--images", "1000", "--classifier", "resnet20.safetensors"),
        *("--probe", "sign", "--directions", "1"),
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    report = read_report(tmp_path / "report.json")
    accuracy = {e.metric: e.value for e in report.estimates if e.metric.endswith("_accuracy")}
    assert accuracy["clean_accuracy"] == pytest.approx(0.915, abs=0.002)
    assert accuracy["anchor_accuracy"] < accuracy["clean_accuracy"]


def test_the_committed_schema_is_the_reports(tmp_path):
    assert (ROOT / "docs/report.schema.json").read_text(encoding="utf-8") == json_schema()


def test_a_terminal_gets_a_bar(tmp_path):
    """Run on a pseudo-terminal: progress is drawn, results are still there."""
    import pty

    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "purify_audit", "compress", "identity", "--images", "450"]
    process = subprocess.Popen(
        [*command, "--draws", "4", "--microbatch", "4"],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=follower,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(follower)
    shown = b""
    while True:
        try:
            chunk = os.read(leader, 65536)
        except OSError:
            break
        if not chunk:
            break
        shown += chunk
    assert process.wait(timeout=60) == 0
    assert b"evaluating" in shown
    assert b"rate" in shown
