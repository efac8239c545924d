"""Option groups that commands share."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from purify_audit.core.errors import PlanError
from purify_audit.spec import from_text

if TYPE_CHECKING:
    from purify_audit.spec.load_options import LoadOptions

Code = Annotated[
    str | None,
    typer.Option(
        "--purifier", help="Code: package.module:factory, or an installed purifier's name."
    ),
]
Argument = Annotated[
    list[str] | None,
    typer.Option("--arg", metavar="KEY=VALUE", help="Argument of the factory; repeatable."),
]
Preset = Annotated[
    str | None,
    typer.Option(
        "--as",
        help="Published way of running the weights, e.g. diffpure-cifar10 (docs/formats.md).",
    ),
]
Weights = Annotated[
    str | None, typer.Option(help="ema or raw, where a file holds both sets of weights.")
]
Assume = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FIELD=VALUE",
        help="A setting that the file does not hold, e.g. t_star=100; repeatable.",
    ),
]
AllowPickle = Annotated[
    bool,
    typer.Option(
        "--allow-pickle", help="Allow pickles, which can execute code (noted in the report)."
    ),
]
TStar = Annotated[
    int | None,
    typer.Option(
        "--t-star", min=1, help="Diffusion time of the forward noise. Default: the card's."
    ),
]
Sampler = Annotated[
    str | None,
    typer.Option(help="Sampler, NAME[:key=value,…], e.g. ddim:steps=10. Default: the card's."),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Level = Annotated[float, typer.Option(help="Confidence level of the intervals.")]
MaxSeconds = Annotated[
    float | None,
    typer.Option("--max-seconds", min=0, help="Stop early and report what was measured."),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the report as JSON, no tables.")]
Out = Annotated[
    Path,
    typer.Option(help="Report file; raw rows are written beside it.", rich_help_panel="Output"),
]


@dataclass(frozen=True, slots=True)
class PurifierOptions:
    """Purifier."""

    purifier: Code = None
    arguments: Argument = None
    published: Preset = None
    weights: Weights = None
    assume: Assume = None
    allow_pickle: AllowPickle = False
    t_star: TStar = None
    sampler: Sampler = None

    def named(self, checkpoint: str | None) -> str:
        """The one checkpoint or code that is named.

        Raises:
            PlanError: none or both are.
        """
        return one_purifier(checkpoint, self.purifier)

    def load_options(self) -> "LoadOptions | None":
        """How to read the checkpoint, if anything was said."""
        return from_text.load_options(
            preset=self.published,
            weights=self.weights,
            assume=self.assume,
            arguments=self.arguments,
            allow_pickle=self.allow_pickle,
        )


@dataclass(frozen=True, slots=True)
class ClassifierOptions:
    """Classifier."""

    classifier: Annotated[
        str | None,
        typer.Option(
            help="Classifier checkpoint, or code. Default: with an attack, the shipped one if it"
            " fits."
        ),
    ] = None
    classifier_preset: Annotated[
        str | None, typer.Option("--classifier-as", help="The same as --as, for the classifier.")
    ] = None
    classifier_arguments: Annotated[
        list[str] | None,
        typer.Option(
            "--classifier-arg", metavar="KEY=VALUE", help="Argument of the classifier's factory."
        ),
    ] = None

    def load_options(self, *, allow_pickle: bool) -> "LoadOptions | None":
        """How to read the classifier, if anything was said."""
        return from_text.load_options(
            preset=self.classifier_preset,
            arguments=self.classifier_arguments,
            allow_pickle=allow_pickle,
        )


@dataclass(frozen=True, slots=True)
class ImageOptions:
    """Images."""

    data: Annotated[
        str | None,
        typer.Option(help="digits, or a file or folder (docs/data.md). Default: bundled images."),
    ] = None
    ids: Annotated[
        str | None, typer.Option(help="Only images with ids FIRST:LAST (LAST excluded).")
    ] = None
    images: Annotated[
        int | None, typer.Option(min=1, help="Number of images. Default: 64, or the preset's.")
    ] = None


@dataclass(frozen=True, slots=True)
class ThreatOptions:
    """Threat model."""

    norm: Annotated[str | None, typer.Option(help="linf (default), l2 or l1.")] = None
    eps: Annotated[
        str | None,
        typer.Option(
            help="Radii for pixels in [0, 1], e.g. 4/255,8/255. Default: 8/255 (linf), 0.5 (l2) or"
            " 12 (l1); for the bundled digits 0.15, 1 or 2."
        ),
    ] = None


@dataclass(frozen=True, slots=True)
class AttackOptions:
    """Attack."""

    preset: Annotated[
        str | None,
        typer.Option(
            help="smoke (20 gradients, 16 images; default), standard (200 gradients, 128 images) or"
            " paper (3 times 400 gradients, 512 images)."
        ),
    ] = None
    optimiser: Annotated[
        str | None,
        typer.Option(
            help="portfolio (many short targeted runs, then long ones on what stands; default), or"
            " one run of pgd, apgd or square (gradient-free)."
        ),
    ] = None
    steps: Annotated[
        int | None, typer.Option(min=1, help="Gradients of each restart, at most.")
    ] = None
    targets: Annotated[
        int | None, typer.Option(min=0, help="Target classes of a portfolio. Default: 9.")
    ] = None
    draws: Annotated[
        int | None,
        typer.Option(min=1, help="Draws that the aligned attack shares with the defence."),
    ] = None
    fresh_draws: Annotated[
        int | None,
        typer.Option("--fresh-draws", min=1, help="Draws of each step under fresh draws (EOT)."),
    ] = None
    fresh_steps: Annotated[
        int | None, typer.Option("--fresh-steps", min=1, help="Steps under fresh draws.")
    ] = None
    restarts: Annotated[
        int | None,
        typer.Option(min=1, help="Restarts: the first at the image, others at random points."),
    ] = None
    loss: Annotated[str | None, typer.Option(help="margin (default), ce or dlr.")] = None
    gradient: Annotated[
        str | None,
        typer.Option(
            help="exact (default), or an approximation: bpda (identity), surrogate (a shorter"
            " chain), none (finite differences, forward passes only)."
        ),
    ] = None
    early_stop: Annotated[
        bool | None,
        typer.Option(
            "--early-stop/--no-early-stop",
            help="Stop pgd, apgd or square on an image that every aligned draw misclassifies.",
        ),
    ] = None
    leave: Annotated[bool | None, typer.Option("--leave/--no-leave", hidden=True)] = None
    held_out: Annotated[
        int | None,
        typer.Option("--held-out", min=1, help="Held-out draws, used for scoring only."),
    ] = None
    attack_microbatch: Annotated[
        int | None,
        typer.Option(
            "--microbatch",
            min=1,
            help="Rows computed at a time. Default: by the size of the images, at most images x"
            " draws.",
        ),
    ] = None

    def given(self) -> dict[str, Any]:
        """The settings that were given, by their names in project files."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        values["microbatch"] = values.pop("attack_microbatch")
        old = values.pop("leave")
        values["early_stop"] = old if values["early_stop"] is None else values["early_stop"]
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Engine."""

    device: Device = "auto"
    precision: Annotated[
        str | None,
        typer.Option(
            help="Precision of the network: float32 (default), tf32 (CUDA), bfloat16 or float16. A"
            " finding reports rounding that is not small beside a rate."
        ),
    ] = None
    compile: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile",
            help="Compile the network (torch.compile), once for each batch size.",
        ),
    ] = None
    channels_last: Annotated[
        bool | None,
        typer.Option(
            "--channels-last/--channels-first", help="Memory layout of the network's tensors."
        ),
    ] = None
    seed: Annotated[
        int | None,
        typer.Option(min=0, max=2**64 - 1, help="Key of all randomness. Default: 0."),
    ] = None

    def given(self) -> dict[str, Any]:
        """Precision, compilation and memory layout, where they were given."""
        names = ("precision", "compile", "channels_last")
        values = {name: getattr(self, name) for name in names}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Run."""

    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print estimated cost and time, then exit.")
    ] = False
    max_seconds: MaxSeconds = None
    measure_anyway: Annotated[
        bool, typer.Option("--measure-anyway", help="Go on after errors in preflight.")
    ] = False
    run_dir: Annotated[
        Path | None,
        typer.Option(
            "--run-dir",
            help="Store finished work here, for resuming; several processes may share the folder"
            " (docs/howto-cluster.md).",
        ),
    ] = None
    shard: Annotated[
        str | None,
        typer.Option(
            "--shard",
            metavar="I/N",
            help="Compute only part I of N (I from 0) into --run-dir; `purify-audit merge` makes"
            " the report.",
        ),
    ] = None


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """Output."""

    as_json: AsJson = False
    quiet: Quiet = False


def one_purifier(named: str | None, code: str | None) -> str:
    """The checkpoint or the code to audit.

    Raises:
        PlanError: neither is given, or both are.
    """
    if (named is None) == (code is None):
        raise PlanError("name one purifier: a checkpoint, or code with --purifier module:factory")
    return str(code if named is None else named)
