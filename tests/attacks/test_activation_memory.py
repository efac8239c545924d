"""Gradients with graphs kept: the same bits, fewer passes, and memory within a budget."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from attack_cases import digits_purifier
from oracles import Recorder, diffusion_card, draws, pixels
from test_gradients import NOTHING, UNROLLED, classify, name, small_purifier
from torch import Tensor, nn
from torch.nn import functional as F

from purify_audit.attacks import activation_memory as kept_graphs
from purify_audit.attacks.activation_memory import ActivationMemory
from purify_audit.attacks.gradients import exact, steps_of
from purify_audit.core.noise import Noise
from purify_audit.models.checkpoint import read_checkpoint
from purify_audit.models.load import load_classifier
from purify_audit.models.purifiers.diffusion import DiffusionPurifier
from purify_audit.models.purifiers.transforms import TransformPurifier, parse_transform
from purify_audit.report.schema import read_report
from purify_audit.spec.samplers import DDIMSampler, DDPMSampler, OneStepSampler, VPSDESampler

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
EVERYTHING = 2**60


def bits(found):
    return [t.contiguous().view(torch.uint8) for t in (found.losses, found.logits, found.at_input)]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(bits(one), bits(other), strict=True))


def digits_head():
    classifier = load_classifier(
        read_checkpoint(ROOT / "models" / "digits-classifier.safetensors"), CPU
    )

    def head(y):
        logits = classifier(y)
        labels = torch.arange(len(y)) % 10
        return F.cross_entropy(logits, labels, reduction="none"), logits

    return head


def digits(n=5):
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1))


# --- the same bits -----------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", UNROLLED, ids=name)
def test_bits_do_not_depend_on_how_many_graphs_are_kept(sampler):
    purifier = small_purifier(sampler)
    x, noise = pixels(4, purifier.card), draws(4)
    without = exact(steps_of(purifier, noise), classify, x)
    count = len(list(purifier.chain(noise)))
    for kept in {1, 2, 3, count // 2, count - 1, count, count + 5}:
        assert same(exact(steps_of(purifier, noise), classify, x, kept), without)


@pytest.mark.parametrize(
    "sampler",
    [
        {"kind": "ddpm", "steps": 4},
        {"kind": "ddim", "steps": 3, "eta": 0.5},
        {"kind": "vp-sde", "steps": 3},
        {"kind": "one-step", "rounds": 2},
    ],
    ids=lambda s: s["kind"],
)
def test_nor_do_they_behind_a_trained_network_and_classifier(sampler):
    purifier, x, noise, head = digits_purifier(sampler), digits(), draws(5), digits_head()
    without = exact(steps_of(purifier, noise), head, x)
    assert float(without.at_input.norm()) > 0.0
    count = len(list(purifier.chain(noise)))
    for kept in range(1, count + 1):
        assert same(exact(steps_of(purifier, noise), head, x, kept), without)


@pytest.mark.parametrize("transform", ["identity", "median", "gaussian-noise", "jpeg", "bit-depth"])
def test_nor_do_those_of_transformations(transform):
    image = diffusion_card(OneStepSampler()).image.model_copy(update={"height": 8, "width": 8})
    purifier = TransformPurifier(parse_transform(transform, image))
    x, noise, head = digits(), draws(5), digits_head()
    without = exact(steps_of(purifier, noise), head, x)
    assert same(exact(steps_of(purifier, noise), head, x, 1), without)


@pytest.mark.parametrize("purifier", NOTHING.values(), ids=NOTHING)
def test_nor_do_those_of_steps_that_let_none_through(purifier):
    x, noise = torch.full((3, 1, 2, 2), 0.6), draws(3)
    steps = [torch.sin, lambda z: purifier(z, noise), torch.cos]
    without = exact(steps, classify, x)
    for kept in (1, 2, 3):
        assert same(exact(steps, classify, x, kept), without)


def test_memory_takes_the_gradients_that_there_are_without():
    purifier = small_purifier(DDPMSampler(steps=6, rounds=2))
    x, noise = pixels(4, purifier.card), draws(4)
    without = exact(steps_of(purifier, noise), classify, x)
    for budget in (0, 10_000, EVERYTHING, None):
        graphs = ActivationMemory(budget)
        for _ in range(3):
            assert same(graphs.exact(purifier, noise, classify, x), without)


# --- how many ----------------------------------------------------------------------------------


def recorded(steps=6, **settings):
    card = diffusion_card(DDIMSampler(steps=steps, **settings))
    recorder = Recorder(small_purifier(card.sampler).network)
    return DiffusionPurifier(card, recorder), recorder


def test_the_first_gradient_runs_all_steps_twice_and_those_after_it_once():
    purifier, recorder = recorded()
    x, noise, graphs = pixels(2, purifier.card), draws(2), ActivationMemory(EVERYTHING)
    assert graphs.kept(purifier, x) is None
    passes = []
    for _ in range(3):
        recorder.images.clear()
        graphs.exact(purifier, noise, classify, x)
        passes.append(len(recorder.images))
    assert passes == [12, 6, 6]


def test_as_many_are_kept_as_the_budget_holds():
    """A step of the network holds 576 bytes here, and the way to the image behind it 128."""
    purifier, recorder = recorded()
    x, noise, twice, peaks = pixels(2, purifier.card), draws(2), [], []
    budgets = (0, 128, 128 + 2 * 576 - 1, 128 + 2 * 576, 128 + 5 * 576, EVERYTHING)
    for budget in budgets:
        graphs = ActivationMemory(budget)
        graphs.exact(purifier, noise, classify, x)
        recorder.images.clear()
        peaks.append(most_held(lambda: graphs.exact(purifier, noise, classify, x)))  # noqa: B023
        twice.append(len(recorder.images) - 6)
    assert twice == [6, 6, 5, 4, 1, 0]
    for budget, peak in zip(budgets, peaks, strict=True):
        assert peak <= budget + peaks[0]  # beside them the one that runs anew, or the head


def most_held(compute):
    """Bytes of all storages that autograd held at once, at most."""
    live: dict[int, list[int]] = {}
    now = peak = 0

    class Held:
        def __init__(self, tensor: Tensor) -> None:
            nonlocal now, peak
            self.tensor, memory = tensor, tensor.untyped_storage()
            self.place = memory.data_ptr()
            count = live.setdefault(self.place, [0, memory.nbytes()])
            count[0] += 1
            now += count[1] * (count[0] == 1)
            peak = max(peak, now)

        def __del__(self) -> None:
            nonlocal now
            count = live[self.place]
            count[0] -= 1
            if not count[0]:
                now -= live.pop(self.place)[1]

    with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
        compute()
    assert now == 0
    return peak


@pytest.mark.parametrize("kind", [DDPMSampler, DDIMSampler, VPSDESampler])
def test_held_bytes_are_bounded_in_the_number_of_steps(kind):
    peaks, whole = {}, {}
    for steps in (5, 10, 20, 40):
        purifier = small_purifier(kind(steps=steps), t_star=80)
        x, noise = pixels(8, purifier.card), draws(8)
        for budget, found in ((8_000, peaks), (EVERYTHING, whole)):
            graphs = ActivationMemory(budget)
            graphs.exact(purifier, noise, classify, x)
            found[steps] = most_held(lambda: graphs.exact(purifier, noise, classify, x))  # noqa: B023
    assert max(peaks.values()) <= 8_000 + 4_000  # the step that runs anew or the head, and weights
    assert peaks[40] == peaks[20]
    assert whole[40] > 5 * whole[5] > 5 * 8_000  # the budget did bind


def test_weights_are_not_counted():
    """A network whose weights are a thousand times its activations keeps its graphs."""

    class Heavy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(500_000), requires_grad=False)

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return x * self.weight[0] + torch.tanh(x) * self.weight.view(-1, 4)[1].view(2, 2)

    card = diffusion_card(DDIMSampler(steps=4))
    purifier, x, noise = DiffusionPurifier(card, Heavy()), pixels(2, card).float(), draws(2)
    graphs = ActivationMemory(100_000)
    graphs.exact(purifier, noise, classify, x)
    assert graphs.kept(purifier, x) == 4 + 3


def test_equal_purifiers_and_shapes_share_what_was_learnt():
    purifier, _ = recorded()
    x, noise, graphs = pixels(3, purifier.card), draws(3), ActivationMemory(EVERYTHING)
    graphs.exact(purifier, noise, classify, x)
    assert graphs.kept(replace(purifier), x) == 9
    assert graphs.kept(purifier, x[:2]) is None
    assert graphs.kept(purifier, x.float()) is None
    other = replace(purifier, card=diffusion_card(DDIMSampler(steps=5)))
    assert graphs.kept(other, x) is None


def test_without_a_budget_it_is_a_quarter_of_what_is_free_up_to_a_ceiling(monkeypatch):
    purifier, _ = recorded()
    x, noise, kept = pixels(2, purifier.card), draws(2), []
    for free in (0, 8_000, 2**50):
        monkeypatch.setattr(kept_graphs, "free_memory", lambda device: free)  # noqa: B023
        graphs = ActivationMemory()
        graphs.exact(purifier, noise, classify, x)
        kept.append(graphs.kept(purifier, x))
    quarter = ActivationMemory(2_000)
    quarter.exact(purifier, noise, classify, x)
    assert kept == [0, quarter.kept(purifier, x), 9]
    assert 0 < kept[1] < 9
    monkeypatch.setattr(kept_graphs, "MOST", 2_000)
    graphs = ActivationMemory()
    graphs.exact(purifier, noise, classify, x)
    assert graphs.kept(purifier, x) == kept[1]


# --- where none may be kept --------------------------------------------------------------------


class Untrue(nn.Module):
    """Other bits where a gradient is wanted, in the last step of the chain alone."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        y = torch.tanh(x)
        late = bool(t[0] < 5.0)
        return 1.01 * y if late and torch.is_grad_enabled() else y


def test_none_is_kept_of_a_network_that_computes_otherwise_with_a_graph():
    card = diffusion_card(DDIMSampler(steps=10, clip=False, clamp=False), t_star=50)
    purifier, x, noise = DiffusionPurifier(card, Untrue()), pixels(3, card).float(), draws(3)
    graphs = ActivationMemory(EVERYTHING)
    without = exact(steps_of(purifier, noise), classify, x)
    assert not same(exact(steps_of(purifier, noise), classify, x, 13), without)
    for _ in range(3):
        assert same(graphs.exact(purifier, noise, classify, x), without)
    assert graphs.kept(purifier, x) == 0


def test_a_state_that_is_no_number_is_the_same_bits_too():
    x, graphs = torch.full((2, 1, 2, 2), torch.nan), ActivationMemory(EVERYTHING)
    purifier = NOTHING["rounded"]
    graphs.exact(purifier, draws(2), classify, x)
    assert graphs.kept(purifier, x) == 1


def test_code_that_takes_derivatives_itself_is_not_watched():
    """`torch.func` refuses to run where somebody watches what autograd saves."""

    def purifier(x: Tensor, noise: Noise) -> Tensor:
        return x - 0.1 * torch.func.grad(lambda z: torch.cos(z).sum())(x)

    x, noise, graphs = digits(), draws(5), ActivationMemory(EVERYTHING)
    without = exact(steps_of(purifier, noise), classify, x)
    for _ in range(2):
        assert same(graphs.exact(purifier, noise, classify, x), without)
    assert graphs.kept(purifier, x) == 0


def test_its_own_faults_are_told():
    def purifier(x: Tensor, noise: Noise) -> Tensor:
        raise RuntimeError("of its own")

    with pytest.raises(RuntimeError, match="of its own"):
        ActivationMemory().exact(purifier, draws(5), classify, digits())


def test_none_is_kept_any_more_once_memory_ran_out(monkeypatch):
    purifier, _ = recorded()
    x, noise, graphs, asked = pixels(2, purifier.card), draws(2), ActivationMemory(EVERYTHING), []
    want = graphs.exact(purifier, noise, classify, x)

    def scarce(steps, head, x, kept=0):
        asked.append(kept)
        if kept:
            raise torch.OutOfMemoryError
        return exact(steps, head, x)

    monkeypatch.setattr(kept_graphs, "exact", scarce)
    assert not graphs.exhausted
    for _ in range(2):
        assert same(graphs.exact(purifier, noise, classify, x), want)
    assert graphs.exhausted
    assert asked == [9, 0, 0]


def test_being_out_of_memory_with_none_kept_is_not_hidden(monkeypatch):
    def purifier(x, noise):
        if torch.is_grad_enabled():
            raise torch.OutOfMemoryError
        return x

    graphs = ActivationMemory()
    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError):
            graphs.exact(purifier, draws(5), classify, digits())


def test_a_report_tells_that_memory_ran_short_and_has_the_same_body(run_cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = (
        "verify",
        ROOT / "models" / "digits-ddpm.safetensors",
        "--attack",
        "--images",
        2,
        "--steps",
        2,
        "--held-out",
        1,
    )
    command += ("--sampler", "ddim:steps=2", "--t-star", 20, "--quiet", "--out")
    assert run_cli(*command, "plain.json")[0] in (0, 3)

    def short(steps, head, x, kept=0):
        if kept:
            raise torch.OutOfMemoryError
        return exact(steps, head, x)

    monkeypatch.setattr(kept_graphs, "exact", short)
    code, out, err = run_cli(*command, "short.json")
    assert code in (0, 3), err
    assert "Memory ran short" in out
    told = [read_report(tmp_path / f"{name}.json").run for name in ("plain", "short")]
    assert [run.short_of_memory for run in told] == [False, True]
    assert told[0].body_sha256 == told[1].body_sha256
