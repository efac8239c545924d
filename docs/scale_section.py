"""Results about speed and scale: time, memory and network evaluations."""

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
        s: output of `benchmarks/scale.py`.
    """
    f = {name: measured["figure"] for name, measured in s["figures"].items()}
    dates = sorted({measured["date"] for measured in s["figures"].values()})
    return f"""
## 12. Speed relative to the bare network

`python benchmarks/scale.py`{", in parts with `--only`," * ("--only" in s["command"])} ({dates[-1]}, {s["machine"]}, torch {s["torch"]}, {s["seconds"]} s), for this section and the next three.
**Nothing here was run on a GPU.** The machine was shared, so every ratio compares two computations that alternate in one
process on one thread, in processor time, which equals wall time on a core of its own (the JSON files also have wall times).
Values are medians, with minimum and maximum in brackets. Networks are the shipped digits and CIFAR-10 U-Nets, mostly with
short chains; the 32×32 images are grey noise.

{_audits(f)}
"Whole audit" is everything from the images to the report, relative to the forward passes that its rows need, at the batch size at
which the bare network is fastest; "rows" excludes preflight and the replay at the end, whose cost does not depend on the number of
images. Goals for the whole: {GOALS["audit_digits"]} (digits), {GOALS["audit_cifar"]} (32×32). {_audit_verdict(f)} {_profile(f["profile_digits"])} {_bare(f)}

{_allocator(f["allocator"])}

{_startup(f["startup"])}

{_gradients(f)}
Goal: {GOALS["gradient"]}. Two forward passes and a backward pass take {spread(f["gradient_digits"]["bare_over_forward"])} (digits) and
{spread(f["gradient_cifar"]["bare_over_forward"])} (CIFAR-10) times as long as one forward pass. Steps with stored activations are not recomputed, so with free memory a
gradient takes less time than this bound; its bits are the same.

## 13. Comparison with common implementations

The baselines are in `benchmarks/scale_baselines.py`: the same network, chain, images and addressed noise. `tests/audit/test_scale.py` checks that
they compute the same numbers.

{_baselines(f)}
Goals: {GOALS["serial_rate"]:.0f} for the rate row by row, {GOALS["serial_eot"]:.0f} for the attack step at equal memory. {_baseline_verdict(f)} "Row by row" is one purification at a time, with the anchor
recomputed for every perturbation; "image by image" batches the perturbations of an image, with as many anchors. The baseline of the
attack step keeps autograd's graph of the whole chain, so that few rows fit into memory; at about equal memory: {_eot_memory(f)}.
{_batching(f)}

**A graph of the whole chain saves a forward pass, but its memory grows with the chain.** {f["graphs"][0]["batch"]} digits, one gradient:

{_graphs(f["graphs"])}
{_graph_text(f["graphs"])}

## 14. Scaling

Time of a compression measurement (digits, micro-batch {f["axes"]["microbatch"]}), with one quantity doubled three times, the others fixed at
{_base(f["axes"]["base"])}:

{_axes(f["axes"])}
By resolution, with a small untrained U-Net of width 32 and {16384:,} pixels per batch: {_resolutions(f["resolutions"])} ms per evaluation; slope in pixels
{f["resolutions"]["slope_in_pixels"]:.2f}.

{_processes(f["processes"])}

**Memory.** Peak memory of a `compress bit-depth:bits=5` process, 3×32×32 images from a file, 2 directions:

{_memory(f["memory"])}
{_memory_text(f["memory"])}

{_dry_run(f["dry_run"])}

{counts_section(f)}"""


def _audits(f: Row) -> str:
    table = [["", "chain", "images", "micro-batch", "passes", "whole audit", "rows", "padding"]]
    for key, name in (*NAMES.items(), ("cifar_shipped", "the same, chain as shipped")):
        a = f[f"audit_{key}"]
        cells = [name, str(a["chain"]), str(a["images"]), str(a["microbatch"]), f"{a['passes']:,}"]
        padding = f"{a['padding']['median']:.3f}"
        table.append([*cells, spread(a["whole"], 3), spread(a["rows"], 3), padding])
    return markdown(table)


def _audit_verdict(f: Row) -> str:
    verdicts = []
    for key, name in (*NAMES.items(), ("cifar_shipped", "the same, chain as shipped")):
        whole, goal = f[f"audit_{key}"]["whole"]["median"], GOALS[f"audit_{key.split('_')[0]}"]
        verdicts.append(f"{name}: {'met' if whole <= goal else 'missed'}")
    return (
        "; ".join(verdicts)
        + ". The shorter the chain, the larger the share of preflight, part of which does not depend on the chain's length."
    )


def _profile(p: Row) -> str:
    parts = ", ".join(f"{name} {share:.1%}" for name, share in p.items())
    return (
        "Profile of a digits audit of 16 images and 10 steps, with a larger share of preflight (cProfile, micro-batches of"
        f" 64, cumulative times): {parts}."
    )


def _bare(f: Row) -> str:
    parts = []
    for key, name in NAMES.items():
        bare = f[f"audit_{key}"]["bare_ms"]
        times = ", ".join(f"{size}: {v['median']:.2f}" for size, v in bare.items())
        parts.append(f"{name} {times}")
    return "The bare network, ms per image and pass by batch size: " + "; ".join(parts) + "."


def _allocator(a: Row) -> str:
    ratios = ", ".join(f"{spread(v)} on `{name}`" for name, v in a.items())
    return (
        "**Memory allocation.** glibc returns the end of the heap to the system, and every page of it is faulted in again in"
        f" the next layer. The commands disable this (`purify_audit/audit/allocator.py`). Time without over time with: {ratios}, in separate"
        " processes, one after the other. All other figures are with it, also for the bare passes and the baselines."
    )


def _startup(u: Row) -> str:
    each = ", ".join(f"`{name}` {spread(v)}" for name, v in u.items())
    return f"**Start-up**, seconds from the start of a process to its first line of output: {each}. (Goals: 0.5 without torch; 5 for `compress`.)"


def _gradients(f: Row) -> str:
    table = [
        [
            "a gradient over two forward passes and a backward pass",
            "activations stored",
            "none",
            "goal",
        ]
    ]
    for key, name in NAMES.items():
        g = f[f"gradient_{key}"]
        word = "met" if g["none_kept"]["median"] <= GOALS["gradient"] else "missed"
        case = f"{name}, {g['batch']} images, {g['steps']} steps"
        table.append([case, spread(g), spread(g["none_kept"]), f"{word} with none"])
    return markdown(table)


def _baselines(f: Row) -> str:
    table = [["time of the baseline over ours", *NAMES.values()]]
    for row in ("row by row", "image by image"):
        table.append([f"rate, {row}", *(spread(f[f"serial_rate_{key}"][row]) for key in NAMES)])
    for row in ("serial, equal memory", "draw by draw, all images"):
        eot = [f[f"serial_eot_{key}"] for key in NAMES]
        table.append([f"attack step, {row}", *(spread(e[row]) for e in eot)])
        label = f"attack step, {row.replace('equal memory', 'its memory')}; ours stores activations"
        table.append([label, *(spread(e["graphs kept"][row]) for e in eot)])
    return markdown(table)


def _baseline_verdict(f: Row) -> str:
    verdicts = []
    for figure, row in (("serial_rate", "row by row"), ("serial_eot", "serial, equal memory")):
        for key in NAMES:
            value = f[f"{figure}_{key}"][row]["median"]
            word = "met" if value >= GOALS[figure] else "missed"
            verdicts.append(f"{'rate' if figure == 'serial_rate' else 'attack'} on {key} {word}")
    return "; ".join(verdicts).capitalize() + "."


def _batching(f: Row) -> str:
    rate = {key: f[f"serial_rate_{key}"] for key in NAMES}
    m = rate["digits"]["directions"]
    shared = 2 * m / (1 + m)
    left = {key: rate[key]["row by row"]["median"] / shared for key in NAMES}
    return (
        f"Sources of the speed-up: for the rate, shared anchors give a factor of {shared:.2f} ({2 * m} purifications per draw become {1 + m}); the"
        f" rest, {left['digits']:.1f} on digits and {left['cifar']:.1f} on 32×32, is batching, which gains little where one image"
        " already saturates a core. The attack's baseline saves the second forward pass, which ours does too if memory is free for activations."
        f" At equal memory the bare passes alone, one forward and one backward pass of the baseline's rows relative to two forward passes and one"
        f" backward pass of ours, give {spread(f['serial_eot_digits']['bare passes alone'])} on digits and {spread(f['serial_eot_cifar']['bare passes alone'])} on 32×32, which"
        " bounds the possible speed-up. Smaller micro-batches with some activations stored in the same memory were slower."
    )


def _eot_memory(f: Row) -> str:
    cases = []
    for key in NAMES:
        e = f[f"serial_eot_{key}"]
        mib = e["peak_mib"]
        baseline = mib["serial, equal memory"]
        kept = e["graphs kept"]["peak_mib"]
        cases.append(
            f"{key}, {e['steps']} steps: {e['rows']} of its rows in {baseline:.0f} MiB, {e['steps']} of ours in {mib['ours']:.0f}"
            f" ({kept:.0f} with stored activations)"
        )
    return "; ".join(cases)


def _graphs(rows: list[Row]) -> str:
    table = [
        ["steps", "graph over ours", "over ours, stored", "graph, MiB", "ours", "ours, stored"]
    ]
    for r in rows:
        mib = [f"{r['peak_mib'][which]:.0f}" for which in ("graph", "ours", "kept")]
        times = [spread(r[which]) for which in ("graph_over_ours", "graph_over_kept")]
        table.append([str(r["steps"]), *times, *mib])
    return markdown(table)


def _graph_text(rows: list[Row]) -> str:
    first, last = rows[0], rows[-1]
    grown = {w: last["peak_mib"][w] / first["peak_mib"][w] for w in ("graph", "ours")}
    longer = last["steps"] / first["steps"]
    return (
        f"From {first['steps']} to {last['steps']} steps ({longer:.0f} times) the graph's memory grows {grown['graph']:.1f} times and ours"
        f" {grown['ours']:.1f} times: ours is one step's graph and one stored image per step, and the activations of as many last steps"
        " as fit into a quarter of the free memory (at most 4 GiB). The price of bounded memory is a second forward pass of"
        " every step without stored activations."
    )


def _base(base: Row) -> str:
    return f"{base['images']} images, {base['draws']} draws, {base['rows'] - 1} directions and {base['steps']} steps"


def _axes(axes: Row) -> str:
    table = [["doubled", "values", "ms per evaluation", "slope of log time"]]
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
    up, limit = p["speed_up"], p["speed_up_nothing_shared"]
    word = "met" if up["median"] >= GOALS["processes"] else "missed"
    loads = ", ".join(f"{v:.1f}" for v in p["load_before"])
    start = p["seconds"]["one image, one step"]["median"]
    one = p["seconds"]["one"]["median"]
    return (
        f"**Two processes that share a run folder: {spread(up)} times as fast as one** (goal {GOALS['processes']}; {word}). The run of one takes"
        f" {one:.0f} s ({p['images']} images, chain of {p['steps']}), of which {start:.1f} s are start-up, loading, and a short"
        f" preflight. Two independent processes with half of the images each reach {spread(limit)} on this machine of two cores,"
        f" whose load before each round was {loads}: an approximate upper bound for sharing."
    )


def _memory(rows: list[Row]) -> str:
    table = [["images", "peak MiB", "s", "report and rows, MB"]]
    for r in rows:
        size = f"{r['report_bytes'] / 1e6:.1f}"
        table.append([f"{r['images']:,}", f"{r['peak_mib']:,.0f}", f"{r['seconds']:.1f}", size])
    return markdown(table)


def _dry_run(d: Row) -> str:
    return (
        f"**Cost estimate.** `compress models/cifar10-ddpm.safetensors --images {d['images']} --dry-run`, with all defaults, prints after"
        f' {d["seconds"]:.0f} s: "{d["told"]}".'
    )


def _memory_text(rows: list[Row]) -> str:
    each = rows[-1]["kib_an_image"]
    return (
        f"Between the last two rows memory grows by **{each:.2f} KiB per image**, without the image's pixels: those of arrays, idx and"
        " CIFAR binary files and folders of pictures are read when a group is measured. The growth is"
        " the rows of the measurement (13 columns per row, stored twice while they are joined), ids and digests. A data set in a"
        " compressed archive, in Parquet or in CIFAR's pickles is held in memory in its own number format."
    )
