"""Attack plan: all settings of an attack, as a validated record."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from purify_audit.core.errors import PlanError
from purify_audit.core.records import Record
from purify_audit.spec.norms import Norm, Radius, check_radii

HELD_OUT = 2**16
"""First of the held-out draws, which only score an attack; aligned draws count from 0."""
SELECTION = 2**17
"""First draw by which a fresh attack selects among its runs."""
FRESH = 2**20
"""First draw of the fresh attack's steps."""
WARM_STEPS = 20
"""Gradients of a warm start, each through one network evaluation."""
TRANSFER_STEPS = 10
"""Gradients of each transfer from the one-step version, each through one network evaluation."""
SHORT_RUN = 10
"""Gradients of a portfolio's short runs; each round doubles them."""
PREDICTION_STEPS = 10
"""Gradients of a prediction through one network evaluation, when the purifier has more."""
PREDICTION_STEPS_DIRECT = 12
"""Gradients of a prediction when the purifier has just one, which start twice as large."""

_MOST_DRAWS = 2**16


class AttackPlan(Record):
    """Everything that decides an attack; pixel units are [0, 1].

    Attributes:
        norm: of the ball.
        eps: its radii, attacked separately.
        optimiser: portfolio (many short targeted runs of PGD and APGD, then longer ones on the
            images that stand; `attacks.portfolio`), or one run of pgd (Madry et al. 2018), apgd
            (Croce and Hein 2020) or square (Andriushchenko et al. 2020, which needs no gradient).
        steps: gradients of each restart, for an image that never falls; queries of `square`.
        targets: target classes of a portfolio, the most probable first.
        draws: of the aligned attack (0, 1, …).
        fresh_draws: of each step of the attack under fresh draws; half as many in targeted runs.
        fresh_steps: of its untargeted run; half as many in each targeted run.
        restarts: the first starts from the image itself, the others from random points; see
            `warm_start`.
        warm_start: attacks begin with the one-step version of a diffusion purifier: a portfolio
            with transfers, a run of pgd or apgd where 20 steps on it end (docs/adr/006).
        loss: maximised by the attack: ce, dlr or margin.
        gradient: exact, or a named approximation: bpda, surrogate, none.
        step_size: of the first step, relative to the radius; pgd decays it to 0 by half a cosine.
        early_stop: runs of pgd, apgd and square stop on an image misclassified under all aligned
            draws. Aligned verdicts do not change; adversarial examples of fooled images, and so
            their held-out verdicts and smallest radii, are those of a shorter attack
            (`docs/method.md`, section 9).
        predict_only: only predict the aligned attack (`docs/method.md`, section 13).
        held_out: draws that score.
        square_queries: of the Square Attack that the attack is compared with.
        surrogate_steps: of the shorter chain, for `surrogate`.
        microbatch: rows (image, draw) computed together, always exactly this many.
    """

    norm: Norm
    eps: Annotated[tuple[Radius, ...], Field(min_length=1)]
    optimiser: Literal["portfolio", "pgd", "apgd", "square"] = "portfolio"
    steps: Annotated[int, Field(ge=1, le=100_000)]
    draws: Annotated[int, Field(ge=1, le=_MOST_DRAWS)]
    restarts: Annotated[int, Field(ge=1, le=1000)]
    targets: Annotated[int, Field(ge=0, le=1000)] = 9
    fresh_draws: Annotated[int, Field(ge=1, le=_MOST_DRAWS)] = 16
    fresh_steps: Annotated[int, Field(ge=1, le=100_000)] = 40
    loss: Literal["ce", "dlr", "margin"] = "margin"
    gradient: Literal["exact", "bpda", "surrogate", "none"] = "exact"
    warm_start: bool = True
    step_size: Annotated[float, Field(gt=0, le=2)] = 1.0
    early_stop: bool = False
    predict_only: bool = False
    held_out: Annotated[int, Field(ge=1, le=_MOST_DRAWS)]
    square_queries: Annotated[int, Field(ge=1, le=100_000)]
    surrogate_steps: Annotated[int, Field(ge=1)] = 5
    microbatch: Annotated[int, Field(ge=1, le=65536)]

    @model_validator(mode="after")
    def _enough_addresses(self) -> Self:
        check_radii(self.norm, self.eps)
        if (self.fresh_steps + 1) * self.fresh_draws * (self.targets + 2) > 2**31:
            raise ValueError("fresh steps x draws needs more draws than there are addresses")
        return self

    def forward_only(self, purifier: bool, classifier: bool) -> "AttackPlan":
        """The same attack where there is no gradient; explicitly set options stay.

        Without one through the purifier the gradient is `none`: finite differences along the
        classifier's. Without the classifier's gradient, only a search is possible, of at least
        `square_queries`.

        Args:
            purifier: whether it is differentiable.
            classifier: whether it is.

        Raises:
            PlanError: an explicitly set option needs a gradient that does not exist.
        """
        if self.predict_only and not classifier:
            raise PlanError(
                "prediction needs the gradient of the classifier, which has none; attack with"
                " --optimiser square"
            )
        searches = self.optimiser == "square"
        changes: dict[str, object] = {}
        if not (classifier or searches):
            queries = max(self.steps, self.square_queries)
            changes = {"optimiser": "square", "steps": queries}
        elif not (purifier or searches or self.gradient in ("none", "bpda")):
            changes = {"gradient": "none"}
        for name in ("optimiser", "gradient"):
            if name in changes and name in self.model_fields_set:
                raise PlanError(
                    f"--{name} {getattr(self, name)}: no gradient goes through the"
                    f" {'purifier' if classifier else 'classifier'}; use --{name} {changes[name]}"
                )
        return self.model_copy(update=changes)

    def aligned(self) -> tuple[int, ...]:
        """The draws that attacker and defender share."""
        return tuple(range(self.draws))

    def fresh(self, run: int, step: int) -> tuple[int, ...]:
        """The draws of one step of a run of the fresh attack; no step sees another's."""
        first = FRESH + (run * (self.fresh_steps + 1) + step) * self.fresh_draws
        return tuple(range(first, first + self.fresh_draws))

    def selection(self) -> tuple[int, ...]:
        """The draws by which the fresh attack selects among its runs."""
        return tuple(range(SELECTION, SELECTION + self.fresh_draws))

    def scoring(self) -> tuple[int, ...]:
        """The held-out draws."""
        return tuple(range(HELD_OUT, HELD_OUT + self.held_out))


PRESETS: dict[str, dict[str, dict[str, object]]] = {
    "smoke": {
        "audit": {"images": 16, "draws": 2, "directions": 2},
        "attack": {
            "steps": 20,
            "draws": 1,
            "restarts": 1,
            "held_out": 8,
            "fresh_draws": 4,
            "fresh_steps": 16,
            "square_queries": 50,
        },
    },
    "standard": {
        "audit": {"images": 128, "draws": 4, "directions": 8},
        "attack": {
            "steps": 200,
            "draws": 1,
            "restarts": 1,
            "held_out": 16,
            "fresh_draws": 16,
            "fresh_steps": 40,
            "square_queries": 500,
        },
    },
    "paper": {
        "audit": {"images": 512, "draws": 4, "directions": 8},
        "attack": {
            "steps": 400,
            "draws": 1,
            "restarts": 3,
            "held_out": 20,
            "fresh_draws": 20,
            "fresh_steps": 100,
            "square_queries": 1000,
        },
    },
}
"""Budgets by measured diminishing returns (`docs/results.md`, section 17)."""
