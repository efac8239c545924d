"""Input transformations before a CIFAR-10 classifier: clean and anchor accuracy, and rates.

    python benchmarks/cifar_transforms.py IMAGES CLASSIFIER [--out benchmarks/cifar_transforms.json]

IMAGES: CIFAR-10 test images (any format of docs/data.md; ids are test-set indices, those below
1000 are used). CLASSIFIER: a native checkpoint, such as a published ResNet-20 with
examples/cifar10-resnet20.json attached. Neither is part of this repository.
"""

import time
from pathlib import Path

import torch
from common import interval, parser, provenance, torch_machine, write

from purify_audit.audit.compression_run import run_compression
from purify_audit.audit.result import Progress
from purify_audit.audit.subject import prepare

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
    flags = parser(__doc__, "cifar_transforms.json")
    flags.add_argument("images")
    flags.add_argument("classifier")
    options = flags.parse_args()
    start, rows = time.monotonic(), []
    for name in TRANSFORMS:
        plan_options: dict[str, object] = {
            "checkpoint": name,
            "data": options.images,
            "classifier": options.classifier,
            "last_id": 1000,
            "images": 1000,
            "directions": 2,
            "draws": 2 if name.startswith("gaussian-noise") else 1,
            "probes": ({"kind": "sign"}, {"kind": "lowfreq"}),
        }
        report = run_compression(prepare(plan_options, torch.device("cpu")), Progress()).report
        fields: dict[str, object] = {"transformation": name}
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
            fields[label] = interval(e)
        fields["findings"] = [f.code for f in report.findings]
        rows.append(fields)
        print(fields, flush=True)
    command = "python benchmarks/cifar_transforms.py"
    command += f" {Path(options.images).name} {Path(options.classifier).name}"
    result = {
        **provenance(command, torch_machine(), start),
        "eps_linf": 8 / 255,
        "rows": rows,
    }
    write(options.out, result)
    print("run `make docs` to update docs/results.md")


if __name__ == "__main__":
    main()
