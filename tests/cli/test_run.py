"""`purify-audit run`, `gate` and `report`: one command for CI, real exit codes."""

import json

import pytest

from purify_audit.report.schema import read_report

HEAD = """\
checkpoint = "{checkpoint}"
data = "digits"
classifier = "CLASSIFIER"
eps = 0.15
images = {images}
draws = 2
steps = 2
held_out = 2
[gate]
min_images = 8
"""
RATE = '[[gate.rule]]\nid = "rate"\nmetric = "compression_rate"\nnorm = "l2"\nprobe = "sign"\n'
ROBUST = '[[gate.rule]]\nid = "robust"\nmetric = "aligned_robust_accuracy"\n'
FILES = {
    "codequality.json",
    "judgement.json",
    "junit.xml",
    "metrics.txt",
    "purify-audit.sarif",
    "report.html",
    "report.json",
    "report.md",
    "report.rows.safetensors",
    "test-result.json",
}


@pytest.fixture
def run(tmp_path, cli_in):
    from purify_audit.models.shipped import shipped_classifier

    def go(rules, *arguments, checkpoint="gaussian-noise:sigma=0.05", images=32, gate=""):
        head = HEAD.format(checkpoint=checkpoint, images=images) + gate
        text = head.replace("CLASSIFIER", str(shipped_classifier((1, 8, 8)))) + rules
        (tmp_path / "purify-audit.toml").write_text(text, encoding="utf-8")
        return cli_in(tmp_path, "run", "--quiet", *arguments)

    return go


def report_in(folder):
    return read_report(folder / "audit/report.json")


@pytest.mark.parametrize(
    ("bound", "code", "word"),
    [("max = 1.2", 0, "PASS"), ("max = 0.5", 1, "FAIL"), ("max = VALUE", 3, "INCONCLUSIVE")],
)
def test_exit_codes_and_files(run, tmp_path, bound, code, word):
    if "VALUE" in bound:
        run(RATE + "max = 9\n", "--full")
        rate = next(e for e in report_in(tmp_path).estimates if e.metric == "compression_rate")
        bound = f"max = {rate.value!r}"
    done = run(RATE + bound + "\n", "--full")
    assert done.returncode == code, done.stderr
    assert {p.name for p in (tmp_path / "audit").iterdir()} == FILES
    assert word in done.stdout.splitlines()
    judgement = json.loads((tmp_path / "audit/judgement.json").read_text())
    assert judgement["verdict"] == word.lower()
    zero = run(RATE + bound + "\n", "--full", "--exit-zero")
    assert zero.returncode == 0


def test_it_stops_as_soon_as_every_rule_is_decided(run, tmp_path):
    run(RATE + "max = 3\n", images=64)
    early = report_in(tmp_path)
    assert len(early.data.ids) == early.plan.looks[0] == 8
    assert early.status == "complete"
    assert early.plan.looks == (8, 16, 32, 64)
    run(RATE + "max = 3\n", "--full", images=64)
    whole = report_in(tmp_path)
    assert len(whole.data.ids) == 64
    assert whole.plan.looks == (64,)
    assert whole.data.ids[:8] == early.data.ids
    run(RATE + "max = 3\nmin_images = 30\n", images=64)
    assert len(report_in(tmp_path).data.ids) == 32


def test_a_run_that_is_kept_goes_on_with_the_same_command(run, tmp_path):
    rules = ROBUST + "max = 0.9\n"
    run(rules, "--full")
    whole = report_in(tmp_path)
    ended = run(rules, "--full", "--max-seconds", 0, "--run-dir", "kept")
    assert (ended.returncode, report_in(tmp_path).status) == (3, "partial")
    for least in (0.9, 0.0):  # goes on; then there is nothing left but what is never kept
        assert run(rules, "--full", "--run-dir", "kept").returncode == 0
        again = report_in(tmp_path).run
        assert again.body_sha256 == whole.run.body_sha256
        assert least * whole.run.evaluations <= again.evaluations
    assert again.evaluations < 0.5 * whole.run.evaluations


def test_the_attack_is_made_only_where_a_rule_needs_it(run, tmp_path):
    run(RATE + "max = 3\n")
    assert report_in(tmp_path).attack is None
    done = run(RATE + "max = 3\n" + ROBUST + "min = 0.9\n", images=16)
    assert done.returncode == 1, done.stdout
    attacked = report_in(tmp_path)
    assert attacked.attack is not None
    assert len(attacked.attack.images) == 8  # the first look: it is far too low
    assert len(attacked.data.ids) == 8
    robust = next(e for e in attacked.estimates if e.metric == "aligned_robust_accuracy")
    assert robust.n_images == 8
    assert "level split over 2 looks" in robust.method


def test_a_prediction_is_made_where_only_that_is_needed(run, tmp_path):
    rule = '[[gate.rule]]\nid = "a"\nmetric = "predicted_robust_accuracy"\nmax = 1\n'
    done = run(rule, images=8)
    assert done.returncode == 0, done.stdout + done.stderr
    metrics = {e.metric for e in report_in(tmp_path).estimates}
    assert "predicted_robust_accuracy" in metrics
    assert "aligned_robust_accuracy" not in metrics


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (RATE.replace('"sign"', '"sphere:2"') + "max = 1\n", "(l2, sphere:2): the probes are sign"),
        (RATE.replace('"sign"', '"nothing"') + "max = 1\n", "probe 'nothing'"),
        (RATE + "max = 1\nmin_images = 64\n", "it requires 64 images and 32 are planned"),
        (RATE + "max = 1\neps = 0.3\n", "no radius 0.3 is planned"),
        (ROBUST + 'min = 0\nprobe = "sign"\n', "the probes are aligned, fresh"),
        (RATE.replace("compression_rate", "rms_gain").replace("sign", "power") + "max = 1\n",
         "rms_gain (l2, power): the probes are sign"),
        ('[[gate.rule]]\nid = "a"\nmetric = "anchor_accuracy"\nmin = 0\nprobe = "sign"\n',
         "anchor_accuracy has no probe"),
    ],
)  # fmt: skip
def test_a_rule_that_could_never_be_decided_is_refused_before_anything_is_spent(
    run, tmp_path, rules, message
):
    done = run(rules)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert not (tmp_path / "audit/report.json").exists()
    assert "<error" in (tmp_path / "audit/junit.xml").read_text()


def test_probes_and_radii_that_rules_name_are_measured(cli_in, tmp_path):
    text = """\
checkpoint = "median:size=3"
data = "digits"
images = 8
draws = 2
directions = 2
[gate]
min_images = 8
"""
    rule = RATE.replace('"sign"', '"{}"') + 'max = 9\neps = "{}"\n'
    third = rule.format("power:3", "0.1").replace('"rate"', '"b"')
    (tmp_path / "purify-audit.toml").write_text(text + rule.format("uniform", "0.05") + third)
    done = cli_in(tmp_path, "run", "--quiet")
    assert done.returncode == 0, done.stderr + done.stdout
    plan = report_in(tmp_path).plan
    assert [probe.kind for probe in plan.probes] == ["sign", "lowfreq", "power", "uniform"]
    assert plan.probes[2].block == 3
    assert plan.eps == (0.05, 0.1)


def test_a_cheat_is_inconclusive_or_fails_and_never_passes(cli_in, tmp_path):
    """A purifier in training mode with hidden randomness: its preflight ends the audit."""
    (tmp_path / "cheat.py").write_text(
        "import torch\n"
        "def make():\n"
        "    calls = []\n"
        "    def purify(x):\n"
        "        calls.append(1)\n"
        "        return (x + 0.01 * len(calls)).clamp(0, 1)\n"
        "    return purify\n"
    )
    text = "[gate]\nmin_images = 8\n" + RATE + "max = 100\n"
    (tmp_path / "purify-audit.toml").write_text("data = 'digits'\nimages = 8\n" + text)
    named = ("--purifier", "cheat:make")
    done = cli_in(tmp_path, "run", *named, "--quiet")
    assert done.returncode == 3, done.stdout + done.stderr
    codes = {f.code for f in report_in(tmp_path).findings}
    assert "PA101" in codes
    rule = '[[gate.rule]]\nid = "f"\nfindings = ["PA1"]\n'
    (tmp_path / "purify-audit.toml").write_text("data = 'digits'\nimages = 8\n" + text + rule)
    assert cli_in(tmp_path, "run", *named, "--quiet").returncode == 1


def test_a_regression_rule_is_paired_with_the_baseline(run, tmp_path, cli_in):
    rule = RATE + "max_increase = 0.02\n"
    without = run(rule, images=16)
    assert without.returncode == 3
    assert "There is no baseline" in without.stdout
    cli_in(tmp_path, "baseline", "save", "audit/report.json", "old.safetensors")
    same = run(rule, "--baseline", "old.safetensors", images=16)
    assert same.returncode == 0, same.stdout
    assert len(report_in(tmp_path).data.ids) == 8  # paired differences are 0 at the first look
    worse = run(rule, "--baseline", "old.safetensors", images=16, checkpoint="identity")
    assert worse.returncode in (0, 1, 3)
    named = run(rule, images=16, gate='baseline = "old.safetensors"\n')
    assert named.returncode == 0


def test_a_baseline_of_other_images_brings_its_micro_batches(run, tmp_path, cli_in):
    """By default sizes follow from the images' number; only numbers of one class are paired."""
    rules = RATE + "max_increase = 0.5\n"
    run(rules, "--full", images=64)
    cli_in(tmp_path, "baseline", "save", "audit/report.json", "old.safetensors")
    old = report_in(tmp_path).plan
    run(rules, "--full", images=12)
    assert report_in(tmp_path).plan.microbatch != old.microbatch
    fewer = run(rules, "--full", "--baseline", "old.safetensors", images=12)
    assert fewer.returncode == 0, fewer.stdout + fewer.stderr
    new = report_in(tmp_path).plan
    assert (new.images, old.images) == (12, 64)
    assert new.microbatch == old.microbatch


@pytest.mark.parametrize(
    ("fail_on", "codes"),
    [("fail", (0, 1, 0)), ("inconclusive", (3, 1, 0)), ("warning", (3, 1, 1))],
)
def test_fail_on(cli_in, tmp_path, fail_on, codes):
    cli_in(tmp_path, "compress", "median:size=3", "--data", "digits", "--images", 8, "--directions",
           2, "--draws", 2, "--quiet")  # fmt: skip
    for name, rule, code in (
        ("open", RATE + "max = 1\nmin_images = 9\n", codes[0]),
        ("fail", RATE + "max = 0.001\n", codes[1]),
        ("warn", RATE + 'max = 0.001\nseverity = "warning"\n', codes[2]),
    ):
        (tmp_path / f"{name}.toml").write_text("[gate]\nmin_images = 2\n" + rule)
        done = cli_in(
            tmp_path, "gate", "report.json", "--policy", f"{name}.toml", "--fail-on", fail_on
        )
        assert done.returncode == code, done.stdout
    bad = cli_in(tmp_path, "gate", "report.json", "--policy", "open.toml", "--fail-on", "never")
    assert (bad.returncode, bad.stdout) == (2, "")


def test_gate_without_a_policy_or_a_report(cli_in, tmp_path):
    assert cli_in(tmp_path, "gate", "report.json").returncode == 2
    (tmp_path / "purify-audit.toml").write_text(RATE + "max = 1\n")
    missing = cli_in(tmp_path, "gate", "report.json")
    assert missing.returncode == 2
    assert "report.json: cannot be read: No such file" in missing.stderr


def test_a_report_is_read_at_another_level(cli_in, tmp_path):
    cli_in(tmp_path, "compress", "median:size=3", "--data", "digits", "--images", 8, "--directions",
           2, "--draws", 2, "--quiet")  # fmt: skip
    half = cli_in(tmp_path, "report", "report.json", "--level", "0.5001")
    most = cli_in(tmp_path, "report", "report.json", "--level", "0.9999")
    assert half.stdout != most.stdout
    for level in ("0.5", "1", "7"):
        assert cli_in(tmp_path, "report", "report.json", "--level", level).returncode == 2
    nothing = cli_in(tmp_path, "report")
    assert nothing.returncode == 2
    schemas = cli_in(tmp_path, "report", "--json-schema", "s.json", "--policy-schema", "p.json")
    assert schemas.returncode == 0
    for name in ("s.json", "p.json"):
        assert json.loads((tmp_path / name).read_text())["$schema"]


def test_a_baseline_in_the_folder_of_the_run_is_not_the_new_report(run, tmp_path):
    """The run replaces audit/report.json; it is compared with what was there before."""
    run(RATE + "max = 9\n", "--full", checkpoint="median:size=3", images=16)
    rule = RATE + "max_increase = 0.02\n"
    worse = run(rule, "--baseline", "audit/report.json", "--full", images=16,
                checkpoint="bit-depth:bits=1")  # fmt: skip
    result = json.loads((tmp_path / "audit/judgement.json").read_text())
    assert worse.returncode == 1, worse.stdout
    assert result["rules"][0]["value"] > 0.02
    assert result["baseline_sha256"] is not None


def test_a_baseline_that_cannot_be_compared_with_is_refused_before_anything_is_spent(
    run, tmp_path, cli_in
):
    run(RATE + "max = 9\n", "--full", images=16)
    cli_in(tmp_path, "baseline", "save", "audit/report.json", "old.safetensors")
    text = (tmp_path / "purify-audit.toml").read_text().replace("draws = 2", "draws = 3")
    (tmp_path / "purify-audit.toml").write_text(text.replace("max = 9", "max_increase = 0.02"))
    done = cli_in(tmp_path, "run", "--quiet", "--baseline", "old.safetensors")
    assert (done.returncode, done.stdout) == (2, "")
    assert "draws is 3, in the baseline 2" in done.stderr
    left = {p.name for p in (tmp_path / "audit").iterdir()}
    assert left == {"junit.xml", "report.rows.safetensors"}  # nothing of the run before is left


@pytest.mark.parametrize("name", ["report.json", "report.html", "judgement.json"])
def test_what_cannot_be_written_is_told_before_anything_is_spent(run, tmp_path, name):
    (tmp_path / "audit" / name).mkdir(parents=True)
    done = run(RATE + "max = 9\n")
    assert (done.returncode, done.stdout) == (2, "")
    assert "cannot be written" in done.stderr


def test_a_warning_that_counts_is_in_every_output(run, tmp_path):
    rule = RATE + 'max = 0.001\nseverity = "warning"\n'
    done = run(rule, "--full", "--fail-on", "warning")
    assert done.returncode == 1
    assert json.loads((tmp_path / "audit/judgement.json").read_text())["verdict"] == "fail"


def test_two_outputs_in_one_file_are_refused(cli_in, tmp_path):
    cli_in(tmp_path, "compress", "median:size=3", "--data", "digits", "--images", 8, "--directions",
           2, "--draws", 2, "--quiet")  # fmt: skip
    (tmp_path / "p.toml").write_text("[gate]\nmin_images = 2\n" + RATE + "max = 9\n")
    done = cli_in(
        tmp_path, "gate", "report.json", "--policy", "p.toml", "--junit", "x", "--sarif", "x"
    )
    assert done.returncode == 2
    assert "two outputs" in done.stderr


def test_names_cannot_speak_to_the_terminal_or_to_the_runner(cli_in, tmp_path):
    cli_in(tmp_path, "compress", "median:size=3", "--data", "digits", "--images", 8, "--directions",
           2, "--draws", 2, "--quiet")  # fmt: skip
    report = read_report(tmp_path / "report.json")
    card = report.checkpoint.card.model_copy(update={"name": "x\n::error::pwned \x1b[31m"})
    changed = report.model_copy(
        update={"checkpoint": report.checkpoint.model_copy(update={"card": card})}
    )
    ran = report.run.model_copy(update={"body_sha256": changed.body_sha256()})
    changed = changed.model_copy(update={"run": ran})
    (tmp_path / "report.json").write_text(changed.model_dump_json(indent=1))
    (tmp_path / "p.toml").write_text("[gate]\nmin_images = 2\n" + RATE + "max = 9\n")
    for command in (("gate", "report.json", "--policy", "p.toml"), ("report", "report.json")):
        done = cli_in(tmp_path, *command)
        assert not [line for line in done.stdout.splitlines() if line.startswith("::")], command
        assert "\x1b" not in done.stdout
