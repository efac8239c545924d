"""What the documents say is what the program does."""

import json
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import typer.main

from purify_audit.cli import app
from purify_audit.core.findings import CODES
from purify_audit.models.purifiers.transforms import TRANSFORM_NAMES
from purify_audit.spec.samplers import SAMPLER_PRESETS
from purify_audit.statistics.estimates import Estimate

ROOT = Path(__file__).parents[2]
COMMANDS = {n: c for n, c in typer.main.get_command(app).commands.items() if not c.hidden}


def text(name):
    return (ROOT / name).read_text(encoding="utf-8")


def test_generated_pages_are_what_the_code_says():
    command = [sys.executable, str(ROOT / "docs/generate.py"), "--check"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_and_is_in_the_readme(name):
    assert COMMANDS[name].help
    assert f"purify-audit {name}" in text("README.md")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_what_it_does(name):
    assert all(p.help for p in COMMANDS[name].params if not getattr(p, "hidden", False))


@pytest.mark.parametrize("code", CODES)
def test_every_finding_is_documented(code):
    assert f"## {code}" in text("docs/findings.md")


def test_every_metric_and_probe_and_transformation_is_in_the_method():
    method = text("docs/method.md")
    metrics = set(re.findall(r'"([a-z]+_[a-z_]+)"', text("purify_audit/statistics/compression.py")))
    metrics &= {m for m in metrics if m.split("_")[-1] in ("rate", "gain", "ratio", "share")} | {
        m for m in metrics if m.endswith("_accuracy") or m.startswith("distance_")
    }
    assert len(metrics) == 9
    for metric in metrics:
        assert f"`{metric}`" in method
    for probe in ("sign", "uniform", "sphere", "lowfreq", "power", "file"):
        assert f"| `{probe}` |" in method
    for sampler in ("ddpm", "ddim", "vp-sde", "vp-ode", "one-step"):
        assert f"**{sampler}**" in method
    assert "metric" in Estimate.model_fields


def test_every_preset_is_listed():
    for name in SAMPLER_PRESETS:
        assert f"| `{name}` |" in text("docs/samplers.md")


def test_every_transformation_has_an_audit_in_the_results():
    for name in TRANSFORM_NAMES:
        assert f"`{name}" in text("docs/results.md")


def test_no_placeholder_is_left():
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("models/*.md")]:
        words = page.read_text(encoding="utf-8")
        assert not re.search(r"\{(output|coverage\w*)\}|placeholder|TODO|FIXME", words), page


def test_links_between_pages_lead_somewhere():
    for page in [ROOT / "README.md", *ROOT.glob("docs/*.md")]:
        for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page}: {target}"


def test_the_python_of_the_readme_runs():
    (code,) = re.findall(r"```python\n(.*?)```", text("README.md"), re.DOTALL)
    result = subprocess.run(
        [sys.executable, "-c", code + "\nprint(audit.report.status)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout.startswith("compression_rate l2 sign 0."), result.stderr
    assert result.stdout.endswith("complete\n")


@pytest.mark.parametrize("name", ["ddpm", "autoencoder", "classifier", "classifier-small"])
def test_model_pages_name_the_file_that_is_shipped(name):
    from purify_audit.models.checkpoint import read_checkpoint

    checkpoint = read_checkpoint(ROOT / "models" / f"digits-{name}.safetensors")
    page = text(f"models/digits-{name}.md")
    assert checkpoint.sha256 in page
    assert f"{checkpoint.parameters:,} parameters" in page


def test_the_shipped_ddpm_keeps_its_anchors():
    """At least 97% of held-out digits keep their class at t* = 60 (one draw of 150 of them)."""
    import torch

    from purify_audit.core.noise import Noise
    from purify_audit.images.image_set import choose, load_images
    from purify_audit.models.checkpoint import read_checkpoint
    from purify_audit.models.load import load_classifier, load_purifier

    cpu, images = torch.device("cpu"), choose(load_images("digits"), 150, 0)
    purifier = load_purifier(read_checkpoint(ROOT / "models/digits-ddpm.safetensors"), cpu)
    classifier = load_classifier(
        read_checkpoint(ROOT / "models/digits-classifier.safetensors"), cpu
    )
    noise = Noise(0, tuple(images.ids.tolist()), (0,) * len(images))
    with torch.inference_mode():
        purified = purifier(torch.from_numpy(images.pixels.copy()), noise)
        labels = classifier(purified).argmax(1).numpy()
        clean = classifier(torch.from_numpy(images.pixels.copy())).argmax(1).numpy()
    assert (labels == images.labels).mean() >= 0.97
    assert (clean == images.labels).mean() >= 0.97


@pytest.mark.parametrize(
    ("figure", "rows"),
    [("compression_robustness", ("rows",)), ("predicted_measured", ("rows", "held_out_rows"))],
)
def test_figures_show_every_purifier_inside_the_frame(figure, rows):
    study = json.loads(text("benchmarks/predictor.json"))
    page = ElementTree.fromstring(text(f"docs/{figure}.svg"))
    points = [c for c in page.iter("{http://www.w3.org/2000/svg}circle") if len(c)]
    assert len(points) == sum(len(study[name]) for name in rows)
    _, _, width, height = map(float, page.get("viewBox").split())
    assert all(60 <= float(c.get("cx")) <= width - 165 for c in points)
    assert all(25 <= float(c.get("cy")) <= height - 45 for c in points)
