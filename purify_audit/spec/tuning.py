"""Settings tuned before a run, and the trials behind them."""

from typing import Annotated

from pydantic import Field

from purify_audit.core.records import Record


class MicrobatchTrial(Record):
    """A timed micro-batch size.

    Attributes:
        microbatch: rows.
        ms_per_row: milliseconds, divided by the rows, of the first steps of a diffusion chain with
            one network evaluation among them, or of a whole purification by other purifiers; none
            where the device had no memory for it.
    """

    microbatch: int
    ms_per_row: float | None


class Components(Record):
    """Variance components of compression rates, for an image x draw x direction layout.

    A rate is its image's mean + draw + pair + draw × pair ± what is odd in the direction, where a
    pair is two directions v, −v: the last part cancels in a pair's mean.

    Attributes:
        image: variance between images.
        draw: between the draws of an image.
        pair: between the pairs of an image.
        both: of the interaction of draws and pairs.
        odd: of what is odd in the direction.
    """

    image: Annotated[float, Field(ge=0)]
    draw: Annotated[float, Field(ge=0)]
    pair: Annotated[float, Field(ge=0)]
    both: Annotated[float, Field(ge=0)]
    odd: Annotated[float, Field(ge=0)]


class Pilot(Record):
    """A pilot measurement, and the allocation derived from it.

    Attributes:
        images: number of images measured.
        components: of the first probe's l2 rates, at the radius where they vary most.
        draws: chosen for the plan.
        directions: chosen.
        needed: estimated number of images that reach the tolerance; none if all available
            images do not.
    """

    images: int
    components: Components
    draws: int
    directions: int
    needed: int | None


class Tuning(Record):
    """Settings tuned before a run.

    Attributes:
        timed: micro-batch sizes; the plan has the fastest for its number of rows.
        too_large: sizes for which the device had no memory.
        attack_too_large: the same for the attack.
        pilot: the measurement by which draws and directions were chosen.
    """

    timed: tuple[MicrobatchTrial, ...] = ()
    too_large: tuple[int, ...] = ()
    attack_too_large: tuple[int, ...] = ()
    pilot: Pilot | None = None
