"""One audit as Ray tasks: each computes one part, and a last one merges them.

    python ray_parts.py PARTS FOLDER purify-audit verify model.safetensors --attack …

FOLDER is one that all nodes see; the report will be FOLDER/report.json. Ray starts `purify-audit`
by its path, so its environment may be another one than Ray's. To try a part again, after a node was
lost or by starting all this again, computes only what the part has not yet kept.
"""

import subprocess
import sys
from pathlib import Path

import ray

ENDED_WELL = (0, 3)  # 3: the report is there, and is inconclusive


@ray.remote(num_cpus=1, max_retries=5)  # num_gpus=1 for GPUs
def purify_audit(command: list[str], where: str) -> int:
    """Run a command; its exit code.

    Ray sets OMP_NUM_THREADS for tasks, which is part of the numerics class: so merging is one too.
    """
    ended = subprocess.run(command, cwd=where, capture_output=True, text=True, check=False)
    if ended.returncode not in ENDED_WELL:
        raise RuntimeError(f"{' '.join(command)} ended with {ended.returncode}: {ended.stderr}")
    return ended.returncode


def main() -> int:
    """Compute all parts, and merge them."""
    parts, folder, command = int(sys.argv[1]), Path(sys.argv[2]).resolve(), sys.argv[3:]
    folder.mkdir(parents=True, exist_ok=True)
    ray.init()
    here, kept = str(Path.cwd()), [str(folder / f"part-{n}") for n in range(parts)]
    shards = [
        [*command, "--quiet", "--shard", f"{n}/{parts}", "--run-dir", run_dir]
        for n, run_dir in enumerate(kept)
    ]
    ray.get([purify_audit.remote(shard, here) for shard in shards])
    merge = [command[0], "merge", *kept, "--quiet", "--out", str(folder / "report.json")]
    return ray.get(purify_audit.remote(merge, here))


if __name__ == "__main__":
    sys.exit(main())
