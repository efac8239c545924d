"""Results on third-party purifiers, and on the shipped ones for CIFAR-10."""

from typing import Any

Row = dict[str, Any]

TITLES = {
    "autoencoder": "autoencoder (chenjie), CIFAR-10, ResNet-20",
    "dncnn": "noise 25/255, then DnCNN (KAIR), CIFAR-10, ResNet-20",
    "mnist-ddpm": "DDPM (B. Pulfer), code, MNIST, LeNet-5",
    "our-autoencoder": "`models/cifar10-autoencoder`, ResNet-56",
    "our-ddpm": "`models/cifar10-ddpm`, ResNet-56",
}


def third_party_section(audits: Row, capture: Row) -> str:
    """Markdown of the audits, and of the effect of captured randomness.

    Args:
        audits: output of `benchmarks/third_party.py`.
        capture: output of `benchmarks/capture_study.py`.
    """
    rows = audits["rows"]
    commands = "\n".join(f"{r['command']}    # {r['seconds']} s" for r in rows)
    lowest = min(rows, key=lambda r: r["compression_rate_sign"][0])
    random = [r for r in rows if "fresh/mean_robust_accuracy" in r]
    hidden = "; ".join(f"{TITLES[r['name']]}, {_hidden(r):.0f} points" for r in random)
    return f"""
## 8. Third-party purifiers

`benchmarks/third_party.py FOLDER` ({rows[0]["date"]}, {rows[0]["machine"]}), ε = 8/255 (CIFAR-10) and 0.3 (MNIST) in l∞, the smoke
preset unless the command reduces it. Rates are l2, of random signs and of the power iteration's direction; the other columns are
accuracies. "Usual" is the usual protocol: fresh attack, mean over held-out draws.

| purifier, images, classifier | images | rate, signs | power | anchors | aligned | usual | bare classifier | findings |
|---|---|---|---|---|---|---|---|---|
{chr(10).join(_row(r) for r in rows)}

```sh
{commands}
```

None of these purifiers was trained as a defence, and none is robust. A low rate of random signs proves nothing by itself: that of
{TITLES[lowest["name"]]} is the lowest, and its aligned robust accuracy is {lowest["aligned/aligned_robust_accuracy"][0]:.1%}. For
randomised purifiers the usual protocol overestimates robust accuracy: {hidden}.

## 9. User code with and without captured randomness

`{capture["command"]}` ({capture["date"]}, {capture["machine"]}, {capture["seconds"]} s): {capture["images"]} images, {capture["draws"]} draws,
random signs. Each row is code that draws its own randomness, run unchanged. "Uncaptured" is the same ratio with independent randomness
in both calls, as measured by a script without alignment.

| code | captured | uncaptured | ratio of the two | same for every micro-batch |
|---|---|---|---|---|
{chr(10).join(_captured(r) for r in capture["rows"])}
"""


def _row(r: Row) -> str:
    findings = ", ".join(sorted(set(r["findings"]))) or "none"
    cells = [TITLES[r["name"]], str(r["images"])]
    cells += [_rate(r[f"compression_rate_{probe}"]) for probe in ("sign", "power")]
    for name in (
        "anchor_accuracy",
        "aligned/aligned_robust_accuracy",
        "fresh/mean_robust_accuracy",
        "bare/bare_robust_accuracy",
    ):
        value = r.get(name)
        cells.append("—" if value is None else f"{value[0]:.1%}")
    return f"| {' | '.join([*cells, findings])} |"


def _hidden(r: Row) -> float:
    """Randomness inflation in points: usual protocol minus aligned attack."""
    fresh, aligned = r["fresh/mean_robust_accuracy"], r["aligned/aligned_robust_accuracy"]
    return float(100 * (fresh[0] - aligned[0]))


def _captured(r: Row) -> str:
    return (
        f"| {r['code']} | {_rate(r['captured'])} | {_rate(r['uncaptured'])} |"
        f" {r['uncaptured'][0] / r['captured'][0]:.1f} | {'yes' if r['same'] else 'no'} |"
    )


def _rate(value: list[float]) -> str:
    return f"{value[0]:.3f} ±{(value[2] - value[1]) / 2:.3f}"
