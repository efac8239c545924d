"""The results of speed and scale: time, memory and network evaluations."""

from typing import Any

from attack_pages import markdown
from scale_counts import counts_section, spread

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

`python benchmarks/scale.py`{", in parts with `--only`," * ("--only" in s["command"])} ({dates[-1]}, {s["machine"]}, torch {s["torch"]}, {s["seconds"]} s), for this section and the next three.
**Nothing here was run on a GPU.** Other work ran on the machine meanwhile, so every ratio is of two things that alternate in
one process on one thread, and of processor time, which is wall time where the thread has a core to itself (the JSON has wall
times too). Given are medians, with the lowest and the highest value in brackets. Networks are the shipped digits and CIFAR-10
U-Nets, with short chains; the 32×32 images are grey noise.

{_audits(f)}
"Rows" is the audit without preflight and the replay at the end, over the bare passes that its rows need at the best batch size; goals: {GOALS["audit_digits"]} (digits),
{GOALS["audit_cifar"]} (32×32). {_audit_verdict(f)} Preflight and replay ("fixed") cost the same for any number of images, and few images
pad their last micro-batches; the last column is for 64 images, by arithmetic. {_profile(f["profile_digits"])} {_bare(f)}

{_gradients(f)}
Goal: {GOALS["gradient"]}. A forward pass is 1, two forward passes and a backward pass together are {spread(f["gradient_digits"]["bare_over_forward"])} (digits) and
{spread(f["gradient_cifar"]["bare_over_forward"])} (CIFAR-10) of them.

## 13. Against what people do today

The rivals are in `benchmarks/scale_rivals.py`: the same network, chain, images and addressed noise. `tests/test_scale.py` holds that they
compute the same numbers.

{_rivals(f)}
Goals: {GOALS["serial_rate"]:.0f} for the rate row by row, {GOALS["serial_eot"]:.0f} for the attack step at equal memory. {_rival_verdict(f)} "Row by row" is one purification at a time with the anchor
anew for every perturbation; "image by image" puts an image's perturbations in one batch, with as many anchors. The rival of the
attack step keeps autograd's graph of the whole chain, so that few rows fit at a time; at about equal memory: {_eot_memory(f)}.
{_batching(f)}

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

{counts_section(f)}"""


def _audits(f: Row) -> str:
    table = [["", "micro-batch", "whole audit", "rows", "padding", "fixed, passes", "64 images"]]
    for key, name in NAMES.items():
        a = f[f"audit_{key}"]
        for size in (128, 32):
            v = a[f"microbatch {size}"]
            cells = [spread(v["whole"]), spread(v["rows"]), f"{v['padding']['median']:.3f}"]
            cells.append(f"{v['fixed']['median']:,.0f}")
            told = f"{name}, {a['images']} images, chain of {a['sampler']['steps']}"
            table.append([told, str(size), *cells, f"{_at_64(a, size):.2f}"])
    return markdown(table)


def _at_64(a: Row, size: int) -> float:
    """The whole audit of 64 images, from its parts; 64 images need no padding."""
    v = a[f"microbatch {size}"]
    fixed: float = v["fixed"]["median"] / (64 * a["passes_per_image"])
    return float(v["rows"]["median"]) / float(v["padding"]["median"]) + fixed


def _audit_verdict(f: Row) -> str:
    told = []
    for key, name in NAMES.items():
        goal = GOALS[f"audit_{key}"]
        for size in (128, 32):
            a = f[f"audit_{key}"]
            v = a[f"microbatch {size}"]
            rows = v["rows"]["median"] / v["padding"]["median"]
            words = ["met" if r <= goal else "missed" for r in (rows, _at_64(a, size))]
            told.append(
                f"{name} with micro-batches of {size}: {words[0]} by rows without padding ({rows:.3f}), {words[1]} by the whole audit"
            )
    return "; ".join(told) + "."


def _profile(p: Row) -> str:
    parts = ", ".join(f"{name} {share:.1%}" for name, share in p.items())
    return (
        f"Where the time of the digits audit goes (cProfile, micro-batches of 64, each part with what it calls): {parts}. So what is"
        " beyond the bare passes is mostly the network again: preflight, the replay, and micro-batches that are not of the best size"
        " (on 32×32 `--microbatch 32` is quicker than the default of 128, on digits slower; on 32×32 batches of 128 cost about 400 page"
        " faults an image, 0.6 of 4.4 ms, as the allocator gives large blocks back). With a chain of one step preflight weighs most."
    )


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
        table.append([f"{name}, {g['batch']} images, {g['steps']} steps", spread(g), word])
    return markdown(table)


def _rivals(f: Row) -> str:
    table = [["time of the rival over ours", *NAMES.values()]]
    for row, told in (
        ("row by row", "rate, row by row"),
        ("image by image", "rate, image by image"),
    ):
        table.append([told, *(spread(f[f"serial_rate_{key}"][row]) for key in NAMES)])
    for row in ("serial, equal memory", "draw by draw, all images"):
        told = f"attack step, {row}"
        table.append([told, *(spread(f[f"serial_eot_{key}"][row]) for key in NAMES)])
    return markdown(table)


def _rival_verdict(f: Row) -> str:
    told = []
    for figure, row in (("serial_rate", "row by row"), ("serial_eot", "serial, equal memory")):
        for key in NAMES:
            value = f[f"{figure}_{key}"][row]["median"]
            word = "met" if value >= GOALS[figure] else "missed"
            told.append(f"{'rate' if figure == 'serial_rate' else 'attack'} on {key} {word}")
    return "; ".join(told).capitalize() + "."


def _batching(f: Row) -> str:
    rate = {key: f[f"serial_rate_{key}"] for key in NAMES}
    m = rate["digits"]["directions"]
    shared = 2 * m / (1 + m)
    left = {key: rate[key]["row by row"]["median"] / shared for key in NAMES}
    return (
        f"Where the gain comes from: of the rate's, sharing anchors is {shared:.2f} ({2 * m} purifications a draw become {1 + m}); the"
        f" rest, {left['digits']:.1f} on digits and {left['cifar']:.1f} on 32×32, is batching, which has little left to give where one image"
        " alone fills a core. The attack's rival also saves the second forward pass. With memory for all images' graphs it"
        " needs no batching of ours, and on 32×32 it is then the quicker one."
    )


def _eot_memory(f: Row) -> str:
    told = []
    for key in NAMES:
        e = f[f"serial_eot_{key}"]
        mib = e["peak_mib"]
        rival = mib["serial, equal memory"]
        told.append(
            f"{key}, {e['steps']} steps: {e['rows']} of their rows in {rival:.0f} MiB, {e['steps']} of ours in {mib['ours']:.0f}"
        )
    return "; ".join(told)


def _graphs(rows: list[Row]) -> str:
    table = [["steps", "graph over ours, time", "graph, MiB", "ours, MiB"]]
    for r in rows:
        mib = [f"{r['peak_mib'][which]:.0f}" for which in ("graph", "ours")]
        table.append([str(r["steps"]), spread(r["graph_over_ours"]), *mib])
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
    names = {
        "images": "images",
        "draws": "draws",
        "rows": "directions, with the anchor",
        "steps": "steps",
    }
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
        f"**Two processes that share a run folder: {spread(up)} times as fast as one** (goal {GOALS['processes']}; {word}). The run of one takes"
        f" {one:.0f} s, of which {start:.1f} s are starting Python, loading and preflight, which nobody halves; without them {spread(free)}."
        f" Two processes that share nothing, with half of the images each, reach {spread(limit)} on this machine of two cores, whose load"
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
        f"**It is not flat: {each:.0f} KiB an image.** An image is 3 KiB in the file and 12 KiB as float32, and all are held twice as"
        " float32 while the chosen ones are put in order (`images.choose`; seen with `tracemalloc`), once afterwards. The audit itself"
        " adds its rows, 0.24 KiB an image here. So memory follows the size of the image file, not the chain, the draws or the directions"
        " of a micro-batch; of a set that does not fit twice, audit a file that holds a part."
    )
