"""Every finding code is earned by a cheat of `cheats.py`, and an honest purifier earns none."""

import cheats
import numpy as np
import pytest
import torch
from attack_cheats import CHEATS as ATTACK_CHEATS
from subjects import DIGITS, PROVENANCE, codes, run, subject_for

from purify_audit.audit.compression_run import run_compression
from purify_audit.core.findings import CODES
from purify_audit.images.image_set import choose, load_images
from purify_audit.models.purifiers.diffusion import DiffusionPurifier
from purify_audit.models.purifiers.schedule import noise_schedule
from purify_audit.spec.architectures import UNetArgs
from purify_audit.spec.card import DiffusionCard
from purify_audit.spec.samplers import DDPMSampler, LinearSchedule

CHEATS = [
    (cheats.GlobalNoise, {"PA101", "PA107"}),
    (cheats.NumpyNoise, {"PA107"}),
    (cheats.PythonNoise, {"PA101", "PA107"}),
    (cheats.DropoutLeftOn, {"PA101", "PA107"}),
    (cheats.CountsCalls, {"PA101"}),
    (cheats.BatchStatistics, {"PA102"}),
    (cheats.PairDetector, {"PA102"}),
    (cheats.Remembers, {"PA101"}),
    (cheats.NaNForOne, {"PA103"}),
    (cheats.WrongShape, {"PA104"}),
    (cheats.WrongType, {"PA104"}),
    (cheats.OtherRange, {"PA105"}),
    (cheats.SlightlyOut, {"PA105"}),
    (cheats.HashedNoise, {"PA108"}),
    (cheats.IgnoresDraw, {"PA109"}),
    (cheats.HidesDraw, {"PA109"}),
    (cheats.Constant, {"PA110"}),
    (cheats.BelowRounding, {"PA201"}),
    (cheats.DriftsLater, {"PA203"}),
]


@pytest.mark.parametrize(("cheat", "expected"), CHEATS, ids=lambda v: getattr(v, "__name__", ""))
def test_a_cheat_ends_in_its_finding(cheat, expected):
    outcome = run(cheat())
    assert expected <= set(codes(outcome))


def test_an_honest_purifier_has_no_findings():
    assert codes(run(cheats.Cheat())) == []


def test_errors_in_preflight_end_the_audit_unless_told_otherwise():
    stopped, anyway = run(cheats.GlobalNoise()), run(cheats.GlobalNoise(), measure_anyway=True)
    assert stopped.samples is None
    assert stopped.report.status == "partial"
    assert stopped.report.estimates == ()
    assert anyway.report.status == "complete"
    assert len(anyway.report.estimates) > 0
    assert "PA101" in codes(anyway)


def test_a_wrong_shape_ends_the_audit_whatever_is_told():
    assert run(cheats.WrongShape(), measure_anyway=True).samples is None


def test_another_data_range_is_an_error_and_a_small_excess_a_warning():
    severities = [
        run(c()).report.findings[0].severity for c in (cheats.OtherRange, cheats.SlightlyOut)
    ]
    assert severities == ["error", "warning"]


def test_nan_during_the_measurement_is_a_finding_and_never_a_number():
    images = choose(load_images("digits"), 16, 0)
    outcome = run(cheats.NaNLater(int(images.ids[12])), images)
    found = next(f for f in outcome.report.findings if f.code == "PA202")
    assert found.evidence["image_ids"] == [int(images.ids[12])]
    assert {e.n_images for e in outcome.report.estimates} == {15}
    assert all(np.isfinite(e.value) for e in outcome.report.estimates)


class Prototypes:
    """Right on every clean digit, wrong on everything else: looks the image up."""

    image, classes = DIGITS, 10

    def __init__(self, images):
        self.known = {p.tobytes(): int(label) for p, label in zip(images.pixels, images.labels)}
        self.wrong = (int(images.labels[0]) + 1) % 10

    def __call__(self, x):
        labels = [self.known.get(row.numpy().tobytes(), 9) for row in x]
        return torch.eye(10)[labels]


def test_anchors_that_lose_their_class_are_a_finding():
    images = choose(load_images("digits"), 16, 0)
    subject = subject_for(cheats.Inverts(), images)
    judge = (subject.checkpoint, Prototypes(images))
    outcome = run_compression(subject_for(cheats.Inverts(), images, judge=judge))
    found = next(f for f in outcome.report.findings if f.code == "PA204")
    assert found.evidence["clean_accuracy"] == 1.0
    assert found.evidence["anchor_accuracy"] < 0.5


def test_a_tolerance_out_of_reach_is_a_finding():
    outcome = run(cheats.Cheat(), tolerance=1e-9)
    assert "PA205" in codes(outcome)


class Oracle(torch.nn.Module):
    """The exact noise predictor for images that are all `mean` grey: eps = (x − a·mean) / b."""

    def __init__(self, schedule, mean, spoil=""):
        super().__init__()
        self.abar = torch.tensor(noise_schedule(schedule).abar, dtype=torch.float32)
        self.mean, self.spoil = mean, spoil

    def forward(self, x, t):
        if self.spoil == "time":
            t = t / 1000
        left = self.abar[t.long()][:, None, None, None]
        mean = self.mean / 2 + 0.5 if self.spoil == "range" else self.mean
        eps = (x - left.sqrt() * mean) / (1 - left).sqrt()
        return -eps / (1 - left).sqrt() if self.spoil == "score" else eps


@pytest.mark.parametrize("spoil", ["", "range", "time", "score"])
def test_a_network_run_with_the_wrong_settings_does_not_denoise(spoil):
    card = DiffusionCard(
        name="oracle",
        image=DIGITS,
        provenance=PROVENANCE,
        network=UNetArgs(width=8, multipliers=(1,), blocks=1),
        prediction="eps",
        time_conditioning="index",
        schedule=LinearSchedule(),
        data_range=(-1.0, 1.0),
        t_star=5,
        sampler=DDPMSampler(),
    )
    digits = choose(load_images("digits"), 16, 0)
    dark = type(digits)(0.02 * digits.pixels, digits.labels, digits.ids, "dark")
    network = Oracle(card.schedule, mean=-0.99, spoil=spoil)
    outcome = run(DiffusionPurifier(card, network), dark)
    assert ("PA106" in codes(outcome)) == bool(spoil)


def test_every_code_has_a_test():
    tested = set().union(*(expected for _, expected in CHEATS + ATTACK_CHEATS))
    by_themselves = {"PA106", "PA202", "PA204", "PA205"}
    by_themselves |= {"PA111", "PA112", "PA113"}  # test_user_code.py
    by_themselves |= {f"PA{n}" for n in range(306, 313)}  # test_sanity_checks.py
    by_themselves |= {"PA313"}  # test_verify.py: a tampered report
    assert tested | by_themselves == set(CODES)
