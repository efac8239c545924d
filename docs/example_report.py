"""Generate the example report and its pictures: `python docs/example_report.py [--report FILE]`.

Audits the shipped diffusion purifier with the attack at two radii (about twenty minutes on one
core), or takes a saved report; judges it by `example-policy.toml`; renders `example-report.html`;
and takes screenshots in both themes, at desktop and phone widths. The browser is the one of
`tests/render/html/test_browser.py`.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

DOCS = Path(__file__).parent
ROOT = DOCS.parent
CLASSIFIER = "models/digits-classifier.safetensors"
AUDIT = ("verify", "models/digits-ddpm.safetensors", "--attack", "--eps", "0.15,0.05")
AUDIT += ("--classifier", CLASSIFIER)
POLICY = "example-policy.toml"
HEIGHTS = {"desk": 1500, "phone": 1480}


def tool(folder: Path, *words: str | Path) -> None:
    """Run a command of the program in a folder; exit on codes other than verdicts."""
    command = [sys.executable, "-m", "purify_audit", *map(str, words)]
    done = subprocess.run(command, cwd=folder, check=False)
    if done.returncode not in (0, 1, 3):
        sys.exit(done.returncode)


def main() -> None:
    """Audit, judge, render, and take screenshots."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--report", type=Path, help="A saved report of that audit.")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.report.parent if arguments.report else Path(scratch)
        if arguments.report is None:
            (folder / "models").symlink_to(ROOT / "models")
            tool(folder, *AUDIT)
        name, page = (
            arguments.report.name if arguments.report else "verify.json",
            DOCS / "example-report.html",
        )
        (folder / POLICY).write_bytes((DOCS / POLICY).read_bytes())
        tool(folder, "gate", name, "--policy", POLICY, "--html", page)
        chromium = os.environ.get("PURIFY_AUDIT_CHROMIUM") or shutil.which("chromium") or ""
        subprocess.run(
            ["node", ROOT / "tests/web/check.mjs", page, scratch],
            env=os.environ | {"PURIFY_AUDIT_CHROMIUM": chromium},
            stdout=subprocess.DEVNULL,
            check=True,
        )
        for view in ("desk-light", "desk-dark", "phone-light", "phone-dark"):
            picture = Image.open(Path(scratch) / f"{view}.png")
            height = min(picture.height, HEIGHTS[view.partition("-")[0]])
            cut = picture.crop((0, 0, picture.width, height)).convert("RGB")
            cut = cut.quantize(128, dither=Image.Dither.NONE)
            cut.save(DOCS / f"report-{view}.png", optimize=True)


if __name__ == "__main__":
    main()
