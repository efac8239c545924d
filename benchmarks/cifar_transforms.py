"""Input transformations before a CIFAR-10 classifier: clean and anchor accuracy, and rates.

    python benchmarks/cifar_transforms.py IMAGES CLASSIFIER [--out benchmarks/cifar_transforms.json]

IMAGES: CIFAR-10 test images (any format of docs/data.md; ids are test-set indices, those below
1000 are used). CLASSIFIER: a native checkpoint, such as a published ResNet-20 with
examples/cifar10-resnet20.json attached. Neither is part of this repository.
"""

import argparse
import json
import platform
import time
from datetime import date
from pathlib import Path

import torch

from purify_audit.audit.compression_run import audit
from purify_audit.audit.result import Progress
from purify_audit.audit.subject import prepare

ROOT = Path(__file__).parents[1]
TRANSFORMS = (
    "identity",
    "bit-depth:bits=5",
    "bit-depth:bits=3",
    "jpeg:quality=75",
    "median:size=2",
    "median:size=3",
    "gaussian-smoothing:sigma=0.5",
    "gaussian-smoothing:sigma=1",
    "gaussian-noise:sigma=0.05",
    "gaussian-noise:sigma=0.1",
)


def main() -> None:
    """Audit and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("images")
    parser.add_argument("classifier")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "cifar_transforms.json")
    options = parser.parse_args()
    start, rows = time.monotonic(), []
    for name in TRANSFORMS:
        asked: dict[str, object] = {
            "checkpoint": name,
            "data": options.images,
            "classifier": options.classifier,
            "last_id": 1000,
            "images": 1000,
            "directions": 2,
            "draws": 2 if name.startswith("gaussian-noise") else 1,
            "probes": ({"kind": "sign"}, {"kind": "lowfreq"}),
        }
        report = audit(prepare(asked, torch.device("cpu")), Progress()).report
        found: dict[str, object] = {"transformation": name}
        rates = {e.probe: e for e in report.estimates if e.metric == "compression_rate"}
        for label, metric, norm, probe in (
            ("clean_accuracy", "clean_accuracy", None, None),
            ("anchor_accuracy", "anchor_accuracy", None, None),
            ("rate_sign_l2", "compression_rate", "l2", "sign"),
            ("rate_sign_linf", "compression_rate", "linf", "sign"),
            ("rate_lowfreq_l2", "compression_rate", "l2", "lowfreq"),
        ):
            e = report.find(metric, norm, rates[probe] if probe else None)
            assert e is not None, label
            found[label] = [e.value, e.lower, e.upper]
        found["findings"] = [f.code for f in report.findings]
        rows.append(found)
        print(found, flush=True)
    result = {
        "command": "python benchmarks/cifar_transforms.py "
        f"{Path(options.images).name} {Path(options.classifier).name}",
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch "
        + torch.__version__,
        "seconds": round(time.monotonic() - start),
        "eps_linf": 8 / 255,
        "rows": rows,
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print("now `make docs` puts them on docs/results.md")


if __name__ == "__main__":
    main()
