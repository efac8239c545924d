"""Attack plan: all settings of an attack, as a validated record."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from purify_audit.core.errors import PlanError
from purify_audit.core.records import Record
from purify_audit.spec.norms import Norm, Radius, check_radii

HELD_OUT = 2**16
"""First of the held-out draws, which only score an attack; aligned draws count from 0."""
SELECTION = 2**17
"""First draw by which a fresh attack chooses between its restarts."""
FRESH = 2**20
"""First draw of the fresh attack's steps."""
WARM = 2**32 - 2**22
"""First draw of a fresh attack's warm start."""
WARM_STEPS = 20
"""Gradients of a warm start, each through one network evaluation."""
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
        optimiser: pgd (Madry et al. 2018), apgd (Croce and Hein 2020) or square (Andriushchenko et
            al. 2020, which needs no gradient).
        steps: gradients of each restart; queries of `square`.
        draws: of the aligned attack (0, 1, …), and of each step of the fresh one.
        restarts: see `warm_start`; without one the first starts from the image itself, the others
            from random points.
        warm_start: a diffusion purifier's first restart starts where an attack on its one-step
            version ends, the second from the image itself (docs/adr/006).
        loss: maximised by the attack: ce, dlr or margin.
        gradient: exact, or a named approximation: bpda, surrogate, none.
        step_size: of the first step, relative to the radius; pgd decays it to 0 by half a cosine.
        early_stop: the aligned attack stops on an image that is misclassified under all aligned
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
    optimiser: Literal["pgd", "apgd", "square"] = "pgd"
    steps: Annotated[int, Field(ge=1, le=100_000)]
    draws: Annotated[int, Field(ge=1, le=_MOST_DRAWS)]
    restarts: Annotated[int, Field(ge=1, le=1000)]
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
        if (self.steps + 1) * self.draws * self.restarts > 2**31:
            raise ValueError("steps x draws x restarts needs more draws than there are addresses")
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

    def fresh(self, restart: int, step: int) -> tuple[int, ...]:
        """The draws of one step of the fresh attack, 0 to `steps`; no step sees another's."""
        first = FRESH + (restart * (self.steps + 1) + step) * self.draws
        return tuple(range(first, first + self.draws))

    def warm(self, step: int) -> tuple[int, ...]:
        """The draws of one step of the fresh attack's warm start."""
        first = WARM + step * self.draws
        return tuple(range(first, first + self.draws))

    def selection(self) -> tuple[int, ...]:
        """The draws by which the fresh attack chooses between restarts."""
        return tuple(range(SELECTION, SELECTION + self.draws))

    def scoring(self) -> tuple[int, ...]:
        """The held-out draws."""
        return tuple(range(HELD_OUT, HELD_OUT + self.held_out))


PRESETS: dict[str, dict[str, dict[str, object]]] = {
    "smoke": {
        "audit": {"images": 64, "draws": 2, "directions": 4},
        "attack": {"steps": 10, "draws": 1, "restarts": 1, "held_out": 8, "square_queries": 200},
    },
    "standard": {
        "audit": {"images": 128, "draws": 4, "directions": 8},
        "attack": {"steps": 100, "draws": 4, "restarts": 2, "held_out": 16, "square_queries": 500},
    },
    "paper": {
        "audit": {"images": 512, "draws": 4, "directions": 8},
        "attack": {
            "steps": 200,
            "draws": 20,
            "restarts": 1,
            "held_out": 20,
            "square_queries": 1000,
        },
    },
}
"""Budgets: a smoke test of minutes, a measurement, or the literature's PGD-200 with EOT 20."""
