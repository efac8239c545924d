"""Parts of a run: who computes what, and what a launcher's variables say about it."""

from itertools import permutations

import pytest

from purify_audit.core.errors import InputError
from purify_audit.models.runner import choose_device
from purify_audit.spec.shard import Shard, parse_shard, place_on_machine, shard_of

KUBERNETES = ("JOB_COMPLETION_INDEX", "JOB_COMPLETIONS")
GITLAB = ("CI_NODE_INDEX", "CI_NODE_TOTAL")
ARRAY = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN")


@pytest.mark.parametrize("count", range(1, 8))
@pytest.mark.parametrize("places", [0, 1, 2, 7, 20])
def test_every_place_comes_once_and_a_parts_own_come_first(places, count):
    firsts = []
    for index in range(count):
        order = list(Shard(index, count).order(places))
        own = [place for place in range(places) if place % count == index]
        assert sorted(order) == list(range(places))
        assert order[: len(own)] == own
        firsts += order[: len(own)]
    assert sorted(firsts) == list(range(places)), "the parts are not a partition"


def test_after_its_own_each_part_begins_with_another_ones():
    """Those that are early do not all take the same unit."""
    orders = [list(Shard(index, 4).order(8)) for index in range(4)]
    assert orders[0] == [0, 4, 5, 1, 6, 2, 7, 3]
    assert all(one[2] != other[2] for one, other in permutations(orders, 2))


def test_the_whole_is_one_part_in_order():
    assert list(Shard().order(5)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("text", ["0/1", "0/4", "3/4", " 2/10 ", "007/010"])
def test_a_part_is_written_as_it_is_read(text):
    part = parse_shard(text)
    assert [part.index, part.count] == [int(number) for number in text.split("/")]
    assert parse_shard(str(part)) == part


@pytest.mark.parametrize(
    "text", ["", "1", "4/4", "5/4", "0/0", "-1/4", "1/-4", "a/4", "1/b", "1/4/2", "1.0/4", "1 / 4"]
)
def test_what_is_no_part_is_told_with_an_example(text):
    with pytest.raises(InputError) as told:
        parse_shard(text)
    assert str(told.value) == (f"--shard '{text}' is not I/N with I from 0 to N - 1, such as 0/4")
    assert told.value.exit_code == 2


@pytest.mark.parametrize(
    ("names", "values", "part"),
    [
        (("RANK", "WORLD_SIZE"), "0 1", "0/1"),
        (("RANK", "WORLD_SIZE"), "3 8", "3/8"),
        (ARRAY, "0 10 0", "0/10"),
        (ARRAY, "9 10 0", "9/10"),
        (ARRAY, "1 10 1", "0/10"),
        (ARRAY, "104 5 100", "4/5"),
        (ARRAY[:2], "4 5", "4/5"),
        (("SLURM_PROCID", "SLURM_NTASKS"), "1 2", "1/2"),
        (KUBERNETES, "2 3", "2/3"),
        (GITLAB, "1 4", "0/4"),
        (GITLAB, "4 4", "3/4"),
    ],
)
def test_what_a_launcher_says(names, values, part):
    said = dict(zip(names, values.split(), strict=True))
    assert shard_of(said | {"HOME": "/"}) == parse_shard(part)


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"RANK": "3"},
        {"WORLD_SIZE": "4"},
        {"SLURM_ARRAY_TASK_ID": "3"},
        {"JOB_COMPLETION_INDEX": "3"},  # Kubernetes says which, never of how many
        {"CI_NODE_INDEX": "2"},
        {"CI_NODE_TOTAL": "2"},
    ],
)
def test_half_of_what_a_launcher_says_is_nothing(said):
    assert shard_of(said) == Shard()


@pytest.mark.parametrize(
    ("names", "values"),
    [
        (("RANK", "WORLD_SIZE"), "4 4"),
        (("RANK", "WORLD_SIZE"), "-1 4"),
        (("RANK", "WORLD_SIZE"), "one 4"),
        (("RANK", "WORLD_SIZE"), " 4"),
        (("RANK", "WORLD_SIZE"), "0 0"),
        (ARRAY, "15 4 0"),  # --array=0-15:5 has four, which are not numbered in sequence
        (ARRAY, "3 4 5"),
        (ARRAY, "3 4 x"),
        (("SLURM_PROCID", "SLURM_NTASKS"), "2 2"),
        (KUBERNETES, "3 3"),
        (KUBERNETES, "0 ${COMPLETIONS}"),
        (GITLAB, "0 4"),
        (GITLAB, "5 4"),
    ],
)
def test_what_contradicts_itself_is_refused_by_name(names, values):
    said = dict(zip(names, values.split(" "), strict=True))
    with pytest.raises(InputError) as told:
        shard_of(said)
    index, count = names[:2]
    assert str(told.value) == (
        f"{index}={said[index]} and {count}={said[count]} name no part of a run; give --shard I/N"
    )


def test_what_is_nearer_to_the_process_counts_first():
    """A torchrun of an array's task has its own parts; so has a step of it."""
    said = {"CI_NODE_INDEX": "1", "CI_NODE_TOTAL": "2"}
    assert shard_of(said) == Shard(0, 2)
    said |= {"SLURM_PROCID": "2", "SLURM_NTASKS": "3"}
    assert shard_of(said) == Shard(2, 3)
    said |= {"RANK": "4", "WORLD_SIZE": "5"}
    assert shard_of(said) == Shard(4, 5)


def test_a_task_of_an_array_is_told_by_the_array():
    said = {"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}
    said |= {"SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_COUNT": "4"}
    assert shard_of(said) == Shard(2, 4)


@pytest.mark.parametrize(
    ("said", "place"),
    [
        ({}, 0),
        ({"LOCAL_RANK": "3"}, 3),
        ({"SLURM_LOCALID": "2"}, 2),
        ({"LOCAL_RANK": "1", "SLURM_LOCALID": "0"}, 1),  # torchrun inside srun
        ({"LOCAL_RANK": "", "SLURM_LOCALID": "2"}, 2),
        ({"LOCAL_RANK": "-1"}, 0),
    ],
)
def test_the_place_among_those_on_one_machine(said, place):
    assert place_on_machine(said) == place


@pytest.mark.parametrize(
    ("devices", "chosen"),
    [(4, ["cuda:0", "cuda:1", "cuda:2"]), (2, ["cuda:0", "cuda:1", "cuda:0"]), (1, ["cuda:0"] * 3)],
)
def test_processes_of_one_machine_share_out_its_devices(devices, chosen, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: devices)
    for place, device in enumerate(chosen):
        monkeypatch.setenv("LOCAL_RANK", str(place))
        assert str(choose_device("auto")) == device
    assert str(choose_device("cpu")) == "cpu"
