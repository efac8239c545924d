"""How a network is run: lower precision, compiled, channels last; and what that costs in digits."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles import PROVENANCE
from subjects import CPU, codes, grey_images, pick, plan_for, run
from torch import nn

from purify_audit.attacks.gradient_checks import in_float64
from purify_audit.attacks.gradients import exact
from purify_audit.audit.defaults import plan_settings
from purify_audit.audit.replay import replay_report
from purify_audit.audit.subject import load_subject, prepare
from purify_audit.compression.preflight import preflight
from purify_audit.core.errors import PlanError
from purify_audit.images.image_set import ImageSet
from purify_audit.models.checkpoint import read_checkpoint
from purify_audit.models.load import load_purifier
from purify_audit.models.open import open_checkpoint
from purify_audit.models.purifiers.engine import EngineNetwork, in_float32, run_by
from purify_audit.models.purifiers.feedforward import FeedforwardPurifier
from purify_audit.models.runner import Runner, deterministic, environment
from purify_audit.report.schema import read_report
from purify_audit.spec.architectures import AutoencoderArgs
from purify_audit.spec.card import FeedforwardCard, ImageSpec
from purify_audit.spec.engine import PLAIN, Engine
from purify_audit.spec.project_file import find_project, project_settings

ROOT = Path(__file__).parents[2]
AUTOENCODER = str(ROOT / "models" / "digits-autoencoder.safetensors")
BFLOAT16 = Engine(precision="bfloat16")
CARD = FeedforwardCard(
    name="oracle",
    image=ImageSpec(channels=1, height=8, width=8),
    provenance=PROVENANCE,
    network=AutoencoderArgs(widths=(4,)),
)


class Middle(nn.Module):
    """y = 1/2 + gain (x − 1/2) as a convolution; gain and offset are bfloat16's own numbers."""

    def __init__(self, gain):
        super().__init__()
        self.gain = nn.Conv2d(1, 1, 1)
        nn.init.constant_(self.gain.weight, gain)
        nn.init.constant_(self.gain.bias, 0.5 - 0.5 * gain)
        self.requires_grad_(False)

    def forward(self, x):
        return self.gain(x)


def purifier(network, engine=PLAIN):
    return FeedforwardPurifier(CARD, run_by(engine, network, CPU))


def small_network():
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.SiLU(), nn.Conv2d(4, 1, 3, padding=1))
    for n, weights in enumerate(network.parameters()):
        values = np.random.default_rng(n).normal(size=weights.shape) / 4
        weights.data = torch.from_numpy(values).float()
    return network.eval().requires_grad_(False)


def rounded(x):
    """To bfloat16's eight bits, ties to even; x float64 [n, ...]."""
    return torch.from_numpy(np.asarray(x)).float().bfloat16().double().numpy()


def pixels(rows=32):
    return torch.from_numpy(grey_images(rows).pixels.copy())


def checkerboard(shape):
    return 1.0 - 2.0 * (np.indices(shape).sum(0) % 2)


# --- the default --------------------------------------------------------------------------------


def test_the_default_engine_is_no_engine():
    network = Middle(0.5)
    assert run_by(Engine(), network, CPU) is network
    assert plan_for(grey_images()).engine == PLAIN
    assert PLAIN.description == "float32, TF32 off"


def test_the_default_engine_changes_no_bit():
    card = FeedforwardCard.model_validate(read_checkpoint(Path(AUTOENCODER)).card.model_dump())
    checkpoint = open_checkpoint(AUTOENCODER, None, None, {})
    x = pixels()
    with deterministic():
        plain = load_purifier(checkpoint, CPU).network(x)
        default = load_purifier(checkpoint, CPU, card, Engine()).network(x)
    assert not isinstance(load_purifier(checkpoint, CPU, card, Engine()).network, EngineNetwork)
    assert torch.equal(plain, default)


# --- what an engine computes --------------------------------------------------------------------


def test_bfloat16_rounds_inputs_and_outputs_and_gives_float32():
    x = pixels()
    y = EngineNetwork(Middle(1.0), BFLOAT16, CPU)(x)
    assert y.dtype == torch.float32
    assert torch.equal(y, x.bfloat16().float())


def test_float16_rounds_to_eleven_bits():
    x = pixels()
    y = EngineNetwork(Middle(1.0), Engine(precision="float16"), CPU)(x)
    assert torch.equal(y, x.half().float())


def test_autocast_works_within_the_exact_settings_of_an_audit():
    x = pixels()
    network = EngineNetwork(Middle(1.0), BFLOAT16, CPU)
    with deterministic():
        assert torch.equal(network(x), x.bfloat16().float())
        assert torch.equal(network.network(x), x)


def test_channels_last_moves_the_weights_and_nothing_else():
    x, plain = pixels(), small_network()
    y = plain(x)
    network = EngineNetwork(plain, Engine(channels_last=True), CPU)
    assert plain[2].weight.is_contiguous(memory_format=torch.channels_last)
    z = network(x)
    wide = EngineNetwork(nn.Conv2d(1, 3, 3).requires_grad_(False), network.engine, CPU)
    assert not wide.network(x.contiguous(memory_format=torch.channels_last)).is_contiguous()
    assert wide(x).is_contiguous()
    torch.testing.assert_close(z, y, rtol=0, atol=1e-6)


def test_a_network_may_be_told_more_than_images():
    class Told(nn.Module):
        def forward(self, x, level, more):
            return x + level + more[:, None, None, None]

    x, more = torch.zeros(2, 1, 8, 8), torch.tensor([1.0, 2.0])
    y = EngineNetwork(Told(), BFLOAT16, CPU)(x, 0.25, more)
    assert y[:, 0, 0, 0].tolist() == [1.25, 2.25]


def test_gradients_pass_through_autocast():
    x = pixels()

    def head(y):
        return y.square().sum((1, 2, 3)), y.flatten(1)

    plain = exact([small_network()], head, x).at_input
    lower = exact([EngineNetwork(small_network(), BFLOAT16, CPU)], head, x).at_input
    off = (lower - plain).flatten(1).norm(dim=1) / plain.flatten(1).norm(dim=1)
    assert lower.dtype == torch.float32
    assert 0 < float(off.max()) < 0.02  # a few roundings of 2⁻⁹


def test_in_float64_it_is_the_plain_network():
    x = pixels().double()
    wide = in_float64(purifier(small_network(), Engine(precision="bfloat16", compile=True)))
    assert torch.equal(wide.network(x), small_network().double()(x))


def test_the_same_purifier_in_float32():
    lower = purifier(Middle(1.0), BFLOAT16)
    assert in_float32(lower) == replace(lower, network=lower.network.network)
    for engine in (PLAIN, Engine(channels_last=True), Engine(compile=True)):
        assert in_float32(purifier(Middle(1.0), engine)) is None


# --- compiled -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compiled():
    return EngineNetwork(small_network(), Engine(compile=True), CPU)


def test_a_compiled_network_is_that_network(compiled):
    x = pixels(8)
    with deterministic():
        torch.testing.assert_close(compiled(x), compiled.network(x), rtol=0, atol=1e-6)


def test_a_compiled_network_gives_the_same_bits_again_and_keeps_rows_apart(compiled):
    x = pixels(8)
    with deterministic():
        y, again = compiled(x), compiled(x)
        others = compiled(torch.cat((x[:1], 1.0 - x[1:])))
        moved = compiled(x.flip(0)).flip(0)
    assert torch.equal(y, again)
    assert torch.equal(others[0], y[0])
    assert not torch.equal(others[1], y[1])
    assert torch.equal(moved, y)


def test_gradients_pass_through_a_compiled_network(compiled):
    x = pixels(8)

    def head(y):
        return y.square().sum((1, 2, 3)), y.flatten(1)

    fast, plain = (exact([f], head, x).at_input for f in (compiled, compiled.network))
    torch.testing.assert_close(fast, plain, rtol=0, atol=1e-6)


def test_a_network_that_cannot_be_compiled_whole_is_refused():
    class Looks(nn.Module):
        def forward(self, x):
            return x if float(x.sum()) > 0 else -x

    message = rf"^PyTorch {torch.__version__.replace('+', '.')} cannot compile the network here, so"
    network = EngineNetwork(Looks(), Engine(compile=True), CPU)
    with pytest.raises(PlanError, match=message + " leave out --compile: .+$") as raised:
        network(torch.ones(2, 1, 8, 8))
    assert "\n" not in str(raised.value)


def test_too_many_sizes_are_refused_not_run_otherwise(compiled, monkeypatch):
    with torch.no_grad():
        compiled(pixels(8))
        monkeypatch.setattr("purify_audit.models.purifiers.engine._PROGRAMS", 1)
        with pytest.raises(PlanError, match=r"cannot compile the network here"):
            compiled(pixels(3))


def test_without_a_compiler_there_is_a_sentence(tmp_path):
    told = {
        "COLUMNS": "1000",
        "CXX": "/nonexistent/c++",
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"),
    }
    ended = subprocess.run(
        [sys.executable, "-m", "purify_audit", "compress", AUTOENCODER, "--compile"],
        cwd=tmp_path,
        env=os.environ | told,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2
    assert "cannot compile the network here, so leave out --compile: " in ended.stderr
    assert "Traceback" not in ended.stderr


# --- the floor ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("norm", "eps", "step"), [("linf", (0.03, 0.1), 0.03), ("l2", (0.8, 0.16), 0.02)]
)
def test_the_floor_is_what_the_precision_gets_wrong_about_a_change(norm, eps, step):
    """Of P(x) = x in bfloat16, rounding is all there is: the floor has a closed form."""
    images = grey_images(8)
    lower = purifier(Middle(1.0), BFLOAT16)
    with deterministic():
        plan = plan_for(images, norm=norm, eps=eps)
        floor = preflight(Runner(lower, CPU, 1, 16), images, plan).floor
    x = images.pixels.astype(np.float64)
    moved = (images.pixels + step * checkerboard(x.shape)).astype(np.float32).astype(np.float64)
    wrong = ((rounded(moved) - moved) - (rounded(x) - x)).reshape(8, -1)
    assert floor["l2"] == pytest.approx(np.sqrt((wrong**2).sum(1)).mean(), rel=1e-6)
    assert floor["linf"] == pytest.approx(np.abs(wrong).max(1).mean(), rel=1e-6)
    # On a grid of spacing s, a step of (n + f) s comes out as n s or (n + 1) s, with probability f:
    # a variance of f (1 − f) s². Half the pixels are below 1/2, where s = 2⁻⁹, half above it.
    spacings = np.array([2.0**-9, 2.0**-8])
    f = step / spacings % 1
    expected = np.sqrt(64 * (f * (1 - f) * spacings**2).mean())
    assert floor["l2"] == pytest.approx(expected, rel=0.15)


def test_the_floor_of_float32_does_not_ask_for_a_radius():
    images, plain = grey_images(8), purifier(Middle(1.0))
    with deterministic():
        runner = Runner(plain, CPU, 1, 16)
        floors = [
            preflight(runner, images, plan).floor
            for plan in (None, plan_for(images), plan_for(images, eps=(0.3,)))
        ]
    assert floors[0] == floors[1] == floors[2]
    assert floors[0]["l2"] < 1e-6


@pytest.mark.parametrize(
    ("gain", "engine", "found"),
    [
        (1 / 64, BFLOAT16, True),
        (1 / 64, PLAIN, False),
        (1 / 64, Engine(channels_last=True), False),
        (1.0, BFLOAT16, False),
    ],
)
def test_a_rate_near_the_floor_is_told(gain, engine, found):
    """Around 1/2 bfloat16 has a grid of 1/512 and 1/256, a change of 0.05 / 64 lies within it."""
    outcome = run(purifier(Middle(gain), engine), grey_images(), engine=engine)
    assert ("PA201" in codes(outcome)) is found
    if found:
        (told,) = [f for f in outcome.report.findings if f.code == "PA201"]
        floor = outcome.report.numeric_floor["l2"]
        size = pick(outcome, "distance_delta", "l2").value
        assert told.evidence["floor"] == pytest.approx(floor / size)
        assert told.evidence["floor"] > 0.1 * told.evidence["rate"]


def test_the_grid_of_a_precision_is_no_jump_of_the_purifier():
    """One pixel lies where bfloat16 rounds up from half a float32 spacing on, eightfold."""
    images = grey_images(8)
    at_the_edge = images.pixels.copy()
    at_the_edge[:, 0, 0, 0] = 0.5 + 2.0**-9
    images = ImageSet(at_the_edge, images.labels, images.ids, images.source)
    lower = purifier(Middle(8.0), BFLOAT16)
    runner = Runner(lower, CPU, 1, 16)
    with deterministic():
        y, nudged = (
            runner.batch(x, images.ids, np.zeros(8, np.int64))
            for x in (images.pixels, images.pixels + np.float32(2.0**-24))
        )
        found = preflight(runner, images, plan_for(images)).findings
    assert np.abs(nudged - y).max() > 1e-2
    assert "PA108" not in [f.code for f in found]


# --- refusals -----------------------------------------------------------------------------------


def test_tf32_is_for_cuda(refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = refused("compress", AUTOENCODER, "--precision", "tf32", "--device", "cpu")
    assert message == "precision tf32 exists on CUDA devices only, not on cpu, which has bfloat16"


@pytest.mark.parametrize(
    "option", [("--precision", "bfloat16"), ("--compile",), ("--channels-last",)]
)
def test_a_transformation_has_no_network(refused, tmp_path, monkeypatch, option):
    monkeypatch.chdir(tmp_path)
    assert refused("compress", "jpeg:quality=75", "--data", "digits", *option) == (
        "jpeg:quality=75: has no network built from a file of weights, so it runs only without"
        " --precision, --compile and --channels-last"
    )


def test_user_code_and_graphs_run_as_they_are(refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = "def build():\n    return lambda x: x\n"
    (tmp_path / "mine.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    message = refused("compress", "--purifier", "mine:build", "--data", "digits", "--compile")
    assert message.startswith("mine:build: has no network built from a file of weights")
    graph = tmp_path / "graph.pt2"
    from purify_audit.models.export import export_purifier

    export_purifier(open_checkpoint(AUTOENCODER, None, None, {}), graph)
    message = refused("compress", graph, "--precision", "bfloat16")
    assert message.startswith(f"{graph}: has no network built from a file of weights")


def test_a_precision_that_there_is_not(refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refused("compress", AUTOENCODER, "--precision", "int8") == (
        "the plan cannot be carried out: field 'engine.precision': Input should be 'float32',"
        " 'tf32', 'bfloat16' or 'float16'"
    )


@pytest.mark.parametrize("fault", [RuntimeError, UserWarning])
def test_a_device_without_the_precision(monkeypatch, fault):
    def unable(*_):
        raise fault("not here")

    monkeypatch.setattr(torch, "autocast", unable)
    with pytest.raises(PlanError) as raised:
        EngineNetwork(Middle(1.0), BFLOAT16, CPU)
    assert str(raised.value) == (
        f"precision bfloat16: cpu with PyTorch {torch.__version__} has none; leave out --precision"
    )


# --- plans, reports, settings -------------------------------------------------------------------


@pytest.fixture(scope="module")
def report(tmp_path_factory, cli_in):
    folder = tmp_path_factory.mktemp("engine")
    options = ("--precision", "bfloat16", "--channels-last", "--images", "8", "--eps", "0.15")
    ended = cli_in(folder, "compress", AUTOENCODER, *options)
    assert ended.returncode == 0, ended.stderr
    return folder / "report.json"


def test_a_report_tells_its_engine(report):
    saved = read_report(report)
    assert saved.plan.engine == Engine(precision="bfloat16", channels_last=True)
    assert saved.environment["precision"] == (
        "float32, TF32 off, bfloat16 in the network, channels last"
    )
    assert saved.numeric_floor["l2"] > 1e-4


def test_a_report_is_computed_again_by_its_engine(report, run_cli):
    code, out, _ = run_cli("verify", report)
    assert (code, out.split(" cells")[0]) == (0, "16 of 16")
    saved = read_report(report)
    assert load_subject(saved.plan, CPU).purifier.network.engine == saved.plan.engine
    plain = saved.model_copy(update={"plan": saved.plan.model_copy(update={"engine": PLAIN})})
    assert not any(cell.same for cell in replay_report(plain, report.parent, 4, CPU))


def test_a_report_of_before_has_the_default_engine(report, tmp_path):
    told = json.loads(report.read_text())
    del told["plan"]["engine"]
    told["run"] = None
    old = tmp_path / "old.json"
    old.write_text(json.dumps(told, indent=1))
    assert read_report(old).plan.engine == PLAIN


@pytest.mark.parametrize(
    "option", [("--precision", "float32"), ("--no-compile",), ("--channels-last",)]
)
def test_a_report_fixes_the_engine_of_its_attack(report, refused, option):
    message = refused("verify", report, "--attack", *option)
    name = option[0].replace("--no-", "--")
    assert message == f"{name} cannot be changed: the report fixes it"


def test_attacks_run_by_the_engine_of_a_report(report, run_cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_cli("verify", report, "--attack", "--images", "8", "--steps", "2", "--out", "attack.json")
    saved = read_report(tmp_path / "attack.json")
    assert saved.plan.engine == Engine(precision="bfloat16", channels_last=True)
    assert saved.attack.environment["precision"] == saved.environment["precision"]
    assert 1e-5 < saved.attack.gradients["float32_error"] < 0.1
    assert "PA301" not in [f.code for f in saved.findings]


def test_a_diffusion_model_is_audited_by_its_engine(stored):
    asked = {"checkpoint": str(stored("diffusion")), "data": "digits", "images": 4, "draws": 1}
    subject = prepare(asked | {"engine": {"precision": "bfloat16"}}, CPU)
    runner = Runner(subject.purifier, CPU, 0, 8)
    with deterministic():
        found = preflight(runner, subject.images, subject.plan)
        plain = preflight(
            replace(runner, purifier=in_float32(subject.purifier)), subject.images, subject.plan
        )
    assert found.floor["l2"] > 100 * plain.floor["l2"] > 0
    assert [f.code for f in found.findings] == [f.code for f in plain.findings]


def test_a_project_file_names_an_engine(tmp_path):
    (tmp_path / "purify-audit.toml").write_text(
        'precision = "bfloat16"\ncompile = false\nchannels-last = true\n'
    )
    settings = project_settings(find_project(tmp_path))
    assert settings == {"precision": "bfloat16", "compile": False, "channels_last": True}
    assert plan_settings(settings)["engine"] == settings
    assert "engine" not in plan_settings({"checkpoint": "a"})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('compile = "yes"', "'compile' is 'yes', not true or false"),
        ("compile = 1", "'compile' is 1, not true or false"),
        ("images = true", "'images' is True, not a whole number"),
    ],
)
def test_a_project_file_with_another_type(tmp_path, line, message):
    (tmp_path / "purify-audit.toml").write_text(line + "\n")
    with pytest.raises(PlanError) as raised:
        project_settings(find_project(tmp_path))
    assert str(raised.value) == f"purify-audit.toml, line 1: {message}"


def test_every_engine_is_told_apart():
    engines = [
        Engine(precision=precision, compile=compiled, channels_last=last)
        for precision in ("float32", "tf32", "bfloat16", "float16")
        for compiled in (False, True)
        for last in (False, True)
    ]
    assert len({environment(CPU, engine)["precision"] for engine in engines}) == 16
    assert environment(CPU)["precision"] == "float32, TF32 off"


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here")
@pytest.mark.parametrize("precision", ["tf32", "bfloat16", "float16"])
def test_cuda_rounds_in_the_network_alone(precision):
    device = torch.device("cuda")
    x = pixels().to(device)
    network = small_network().to(device)
    with deterministic():
        plain = network(x)
        lower = EngineNetwork(network, Engine(precision=precision), device)(x)
        assert torch.equal(network(x), plain)
    off = float((lower - plain).norm() / plain.norm())
    assert 1e-6 < off < 0.02
