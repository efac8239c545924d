"""The results of speed and scale: time, memory and network evaluations."""

from typing import Any

from attack_pages import markdown

Row = dict[str, Any]

GOALS = {"audit_digits": 1.05, "audit_cifar": 1.03, "gradient": 1.08}
GOALS |= {"serial_rate": 3.0, "serial_eot": 2.0, "processes": 1.8}
NAMES = {"digits": "digits, 8×8", "cifar": "CIFAR-10, 32×32"}


def scale_section(s: Row) -> str:
    """Sections 12 to 15 of the results.

    Args:
        s: what `benchmarks/scale.py` wrote.
    """
    f = {name: made["figure"] for name, made in s["figures"].items()}
    dates = sorted({made["date"] for made in s["figures"].values()})
    return f"""
## 12. Speed, against the bare network

`{s["command"]}` ({dates[-1]}, {s["machine"]}, torch {s["torch"]}, {s["seconds"]} s), for this section and the next three.
**Nothing here was run on a GPU.** Other work ran on the machine meanwhile, so every ratio is of two things that alternate in
one process: a median, with the lowest and the highest value in brackets. Networks are the shipped digits and CIFAR-10 U-Nets, with
short chains; the 32×32 images are grey noise, which costs what pictures cost.

{_audits(f)}
"Rows" is the audit without preflight, over the bare passes that its rows need at the best batch size; goals: {GOALS["audit_digits"]} (digits),
{GOALS["audit_cifar"]} (32×32). {_audit_verdict(f)} Preflight costs the same for any number of images; the last column adds it to 64 images by
arithmetic. {_bare(f)}

{_gradients(f)}
Goal: {GOALS["gradient"]}. A forward pass is 1, two forward passes and a backward pass together are {_spread(f["gradient_digits"]["bare_over_forward"])} (digits) and
{_spread(f["gradient_cifar"]["bare_over_forward"])} (CIFAR-10) of them.

## 13. Against what people do today

The rivals are in `benchmarks/scale_rivals.py`: the same network, chain, images and addressed noise. `tests/test_scale.py` holds that they
compute the same numbers.

{_rivals(f)}
Goals: {GOALS["serial_rate"]:.0f} for the rate row by row, {GOALS["serial_eot"]:.0f} for the attack step at equal memory. {_rival_verdict(f)} "Row by row" is one purification at a time with the anchor
anew for every perturbation; "image by image" puts an image's perturbations in one batch, with as many anchors. The rival of the
attack step keeps autograd's graph of the whole chain: one row then takes the memory of as many rows of one step as the chain has
steps, and that many rows are our micro-batch (measured: {_eot_memory(f)}).

**A graph through the whole chain is quicker, and its memory grows with the chain.** {f["graphs"][0]["batch"]} digits, one gradient:

{_graphs(f["graphs"])}
{_graph_text(f["graphs"])}

## 14. How cost grows

Time of a compression measurement (digits, micro-batch {f["axes"]["microbatch"]}), one count doubled three times, the others fixed at
{_base(f["axes"]["base"])}:

{_axes(f["axes"])}
By resolution, with a small untrained U-Net of width 32 and {16384:,} pixels a batch: {_resolutions(f["resolutions"])} ms an evaluation; slope in pixels
{f["resolutions"]["slope_in_pixels"]:.2f}.

{_processes(f["processes"])}

**Memory.** Peak of a whole `compress bit-depth:bits=5` process, 3×32×32 images from a file, 2 directions:

{_memory(f["memory"])}
{_memory_text(f["memory"])}

## 15. Network evaluations: the audit, the attack, and a published protocol

Planned, for the digits DDPM as shipped (a backward pass counted as one evaluation; compression with 4 draws and 8 directions of each probe):

{_presets(f["presets"])}
{_small(f["small_case"])}

**To know the compression rate to ±0.01 (95%).** {_components(f["to_reach"])}

{_designs(f["to_reach"])}
{_design_text(f["to_reach"])}

{_diffpure(f["diffpure"])}
"""


def _spread(v: Row, digits: int = 2) -> str:
    low, high = min(v["all"]), max(v["all"])
    return f"{v['median']:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _audits(f: Row) -> str:
    table = [["", "micro-batch", "whole audit", "rows", "preflight, passes", "64 images"]]
    for key, name in NAMES.items():
        a = f[f"audit_{key}"]
        for size in (128, 64):
            v = a[f"microbatch {size}"]
            cells = [_spread(v["whole"]), _spread(v["rows"]), f"{v['preflight']['median']:,.0f}"]
            told = f"{name}, {a['images']} images, {a['sampler']['steps']} steps"
            table.append([told, str(size), *cells, f"{_at_64(a, size):.2f}"])
    return markdown(table)


def _at_64(a: Row, size: int) -> float:
    """The whole audit of 64 images, from its two parts."""
    v = a[f"microbatch {size}"]
    fixed: float = v["preflight"]["median"] / (64 * a["passes_per_image"])
    return float(v["rows"]["median"]) + fixed


def _audit_verdict(f: Row) -> str:
    told = []
    for key, name in NAMES.items():
        goal = GOALS[f"audit_{key}"]
        for size in (128, 64):
            value = f[f"audit_{key}"][f"microbatch {size}"]["rows"]["median"]
            word = "met" if value <= goal else "missed"
            told.append(f"{name} with micro-batches of {size}: {word}")
    return "; ".join(told) + "."


def _bare(f: Row) -> str:
    parts = []
    for key, name in NAMES.items():
        bare = f[f"audit_{key}"]["bare_ms"]
        told = ", ".join(f"{size}: {v['median']:.2f}" for size, v in bare.items())
        parts.append(f"{name} {told}")
    return "The bare network, ms an image and pass by batch size: " + "; ".join(parts) + "."


def _gradients(f: Row) -> str:
    table = [["a gradient over two forward passes and a backward pass", "ratio", "goal"]]
    for key, name in NAMES.items():
        g = f[f"gradient_{key}"]
        word = "met" if g["median"] <= GOALS["gradient"] else "missed"
        table.append([f"{name}, {g['batch']} images, {g['steps']} steps", _spread(g), word])
    return markdown(table)


def _rivals(f: Row) -> str:
    table = [["time of the rival over ours", *NAMES.values()]]
    for row, told in (("row by row", "rate, row by row"), ("image by image", "rate, image by image")):
        table.append([told, *(_spread(f[f"serial_rate_{key}"][row]) for key in NAMES)])
    for row in ("row by row, equal memory", "draw by draw, all images"):
        told = f"attack step, {row}"
        table.append([told, *(_spread(f[f"serial_eot_{key}"][row]) for key in NAMES)])
    return markdown(table)


def _rival_verdict(f: Row) -> str:
    told = []
    for figure, row in (("serial_rate", "row by row"), ("serial_eot", "row by row, equal memory")):
        for key in NAMES:
            value = f[f"{figure}_{key}"][row]["median"]
            word = "met" if value >= GOALS[figure] else "missed"
            told.append(f"{'rate' if figure == 'serial_rate' else 'attack'} on {key} {word}")
    return "; ".join(told).capitalize() + "."


def _eot_memory(f: Row) -> str:
    told = []
    for key in NAMES:
        e = f[f"serial_eot_{key}"]
        mib = e["peak_mib"]
        rival = mib["row by row, equal memory"]
        told.append(f"{key}, {e['steps']} steps: {mib['ours']:.0f} MiB ours, {rival:.0f} theirs")
    return "; ".join(told)


def _graphs(rows: list[Row]) -> str:
    table = [["steps", "graph over ours, time", "graph, MiB", "ours, MiB"]]
    for r in rows:
        mib = [f"{r['peak_mib'][which]:.0f}" for which in ("graph", "ours")]
        table.append([str(r["steps"]), _spread(r["graph_over_ours"]), *mib])
    return markdown(table)


def _graph_text(rows: list[Row]) -> str:
    first, last = rows[0], rows[-1]
    grown = {w: last["peak_mib"][w] / first["peak_mib"][w] for w in ("graph", "ours")}
    longer = last["steps"] / first["steps"]
    return (
        f"From {first['steps']} to {last['steps']} steps ({longer:.0f} times) the graph's memory grows {grown['graph']:.1f} times and ours"
        f" {grown['ours']:.1f} times: ours is one step's graph and one stored image a step. What is saved in memory is paid for with"
        " one forward pass more in every step."
    )


def _base(base: Row) -> str:
    return f"{base['images']} images, {base['draws']} draws, {base['rows'] - 1} directions and {base['steps']} steps"


def _axes(axes: Row) -> str:
    table = [["doubled", "values", "ms an evaluation", "slope of log time"]]
    names = {"images": "images", "draws": "draws", "rows": "directions, with the anchor", "steps": "steps"}
    for axis, name in names.items():
        a = axes[axis]
        values = ", ".join(map(str, a["values"]))
        each = ", ".join(f"{v:.3f}" for v in a["ms_per_evaluation"])
        table.append([name, values, each, f"{a['slope']:.2f}"])
    return markdown(table)


def _resolutions(r: Row) -> str:
    pairs = zip(r["sides"], r["ms_per_evaluation"], strict=True)
    return ", ".join(f"{side}×{side} {ms:.2f}" for side, ms in pairs)


def _processes(p: Row) -> str:
    up, free, limit = (
        p[name] for name in ("speed_up", "speed_up_without_start", "speed_up_nothing_shared")
    )
    word = "met" if up["median"] >= GOALS["processes"] else "missed"
    loads = ", ".join(f"{v:.1f}" for v in p["load_before"])
    start = p["seconds"]["one image, one step"]["median"]
    one = p["seconds"]["one"]["median"]
    return (
        f"**Two processes that share a run folder: {_spread(up)} times as fast as one** (goal {GOALS['processes']}; {word}). The run of one takes"
        f" {one:.0f} s, of which {start:.1f} s are starting Python, loading and preflight, which nobody halves; without them {_spread(free)}."
        f" Two processes that share nothing, with half of the images each, reach {_spread(limit)} on this machine of two cores, whose load"
        f" before each round was {loads}: that is the most that sharing could give here."
    )


def _memory(rows: list[Row]) -> str:
    table = [["images", "peak MiB", "s", "report and rows, MB"]]
    for r in rows:
        size = f"{r['report_bytes'] / 1e6:.1f}"
        table.append([f"{r['images']:,}", f"{r['peak_mib']:,.0f}", f"{r['seconds']:.1f}", size])
    return markdown(table)


def _memory_text(rows: list[Row]) -> str:
    first, last = rows[0], rows[-1]
    each = 1024 * (last["peak_mib"] - first["peak_mib"]) / (last["images"] - first["images"])
    return (
        f"It is not flat: {each:.0f} KiB an image, of which the pixels in float32 are 12 KiB and in the file 3 KiB. All images are held"
        " as float32 twice while the chosen ones are put in order (`images.choose`), and the file's bytes with them while they are"
        " converted; rows add 0.3 KiB an image here. 50,000 images of 224×224 would not fit: audit a part of such a set at a time, from"
        " a file that holds only that part."
    )


def _presets(presets: Row) -> str:
    table = [["`verify` preset", "images", "compression", "attack", "attack over compression"]]
    for name, p in presets.items():
        counts = [f"{p[key]:,}" for key in ("images", "compress", "attack")]
        table.append([name, *counts, f"{p['attack_over_compress']:.1f}"])
    return markdown(table)


def _small(s: Row) -> str:
    return (
        f"Measured on a small case (`smoke`, {s['images']} images, {s['steps']} steps, no padding): {s['attack_over_compress']:.1f} times"
        f" the evaluations by plan, {_spread(s['time'], 1)} times the time. (A backward pass takes longer than a forward pass, and the"
        " audit's preflight counts in its time.)"
    )


def _components(t: Row) -> str:
    parts = ", ".join(f"{name} {1e3 * v:.2f}" for name, v in t["components"].items())
    return (
        f"Variance components of the l2 rate of random signs (mean {t['rate']:.3f}), from {t['images']} images, {t['draws']} draws,"
        f" {t['directions']} directions, `ddpm` with {t['steps']} steps, in thousandths: {parts}. With K draws and Q pairs of directions v, −v"
        " an image's mean varies by σ²(image) + σ²(draw)/K + σ²(pair)/Q + σ²(draw × pair)/(KQ) for K(1 + 2Q) purifications (the"
        " anchor is shared, and what is odd in v cancels); with m perturbations that have a draw, a direction and an anchor of their own,"
        " by σ²(image) + (σ²(draw) + σ²(pair) + σ²(draw × pair) + σ²(odd))/m for 2m. Images needed: the smallest n with t(n−1)·√(variance/n) ≤ 0.01."
    )


def _designs(t: Row) -> str:
    table = [["design", "images", "network evaluations"]]
    for name, d in t["designs"].items():
        table.append([name, f"{d['images']:,}", f"{d['evaluations']:,}"])
    return markdown(table)


def _design_text(t: Row) -> str:
    ours, plain = (t["designs"][n] for n in ("ours, 4 draws, 8 directions", "plain, 32 perturbations an image"))
    fewest = min(t["designs"], key=lambda name: t["designs"][name]["evaluations"])
    saved = plain["evaluations"] / ours["evaluations"]
    return (
        f"With as many perturbations an image, pairs and shared anchors need {saved:.2f} times fewer evaluations than plain Monte Carlo,"
        f" though {ours['images'] / plain['images']:.2f} times the images. The fewest evaluations of all: {fewest}. **Where images are"
        " plentiful, many draws and directions of each are not the cheapest way to the mean rate**: the defaults buy the randomness"
        " share, the spread over draws and an interval from few images. `--draws 1 --directions 2` is the cheap setting."
    )


def _diffpure(d: Row) -> str:
    hours = {name: d[name] * d["example_seconds"] / 3600 for name in ("compress", "attack")}
    cheap = "compress, 1 draw, 2 directions"
    return f"""**DiffPure's ImageNet protocol, on paper.** {d["images"]} images, t* = {d["t_star"]}, so {d["t_star"]} evaluations a purification, APGD of {d["steps"]} steps with EOT {d["draws"]}
(Nie et al. 2022). Counted by the tool's own plans:

{
        markdown(
            [
                ["", "network evaluations"],
                ["compression, default probes", f"{d['compress']:,}"],
                ["compression, random signs, 1 draw, 2 directions", f"{d[cheap]:,}"],
                ["one APGD attack, gradients alone", f"{d['one attack alone']:,}"],
                ["`verify`: aligned and fresh attack, checks and scores", f"{d['attack']:,}"],
            ]
        )
    }
With s seconds an evaluation, hours = evaluations × s / 3600, divided by the number of processes. *Arithmetic, not a measurement:*
at {1000 * d["example_seconds"]:.0f} ms an evaluation, compression takes {hours["compress"]:.0f} hours and `verify` {hours["attack"]:,.0f}. We have not run it."""
