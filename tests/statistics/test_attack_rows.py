"""Raw results of attacks: what is saved is what is loaded, and it is a set of images too."""

import json
from dataclasses import fields, replace

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file
from subjects import DIGITS, grey_images, pick, run

from purify_audit.core.errors import ReportError
from purify_audit.images.image_set import load_images
from purify_audit.statistics.attack_rows import (
    RUNS,
    AttackSamples,
    CapRows,
    Scored,
    join_attacks,
    load_attacks,
    save_attacks,
    with_rows,
)
from purify_audit.statistics.compression_rows import CompressionSamples, save_samples

ATTACKS = (("aligned", 0.1), ("fresh", 0.1), ("bare", 0.1), ("aligned", 0.25))


def scored(name, eps, n, seed, held_out=3):
    rng = np.random.default_rng(seed)
    return Scored(
        name=name,
        eps=eps,
        images=rng.uniform(size=(n, 1, 8, 8)).astype(np.float32),
        aligned=rng.integers(0, 10, (n, 2)),
        held_out=rng.integers(0, 10, (n, held_out)),
        change_l2=rng.uniform(size=(n, 2)),
        delta_l2=rng.uniform(size=n),
        change_linf=rng.uniform(size=(n, 2)),
        delta_linf=rng.uniform(size=n),
        fooling_radius=np.where(rng.uniform(size=n) < 0.5, np.inf, rng.uniform(size=n)),
        made_by=rng.integers(-1, len(RUNS), n),
    )


def samples(n=6, first_id=100, attacks=ATTACKS, caps=True, seed=0):
    rng = np.random.default_rng(seed + 1000)
    return AttackSamples(
        ids=np.arange(first_id, first_id + n),
        labels=rng.integers(0, 10, n),
        clean_aligned=rng.integers(0, 10, (n, 2)),
        clean_margins=rng.normal(size=(n, 2)),
        clean_held_out=rng.integers(0, 10, (n, 3)),
        bare_clean=rng.integers(0, 10, n),
        scored=tuple(
            scored(name, eps, n, seed + k, 0 if name == "bare" else 3)
            for k, (name, eps) in enumerate(attacks)
        ),
        caps=CapRows(np.array([0.1, 0.2]), rng.uniform(size=(n, 2)), rng.uniform(size=(n, 2)))
        if caps
        else None,
    )


def same(one, other):
    """Field by field: bits, types and shapes."""
    assert type(one) is type(other)
    for f in fields(one):
        a, b = getattr(one, f.name), getattr(other, f.name)
        if isinstance(a, np.ndarray):
            assert (a.dtype, a.shape) == (b.dtype, b.shape)
            assert np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
        elif f.name == "scored":
            assert len(a) == len(b)
            for x, y in zip(a, b):
                same(x, y)
        elif f.name == "caps" and a is not None:
            same(a, b)
        else:
            assert a == b
    return True


# --- files -------------------------------------------------------------------------------------


@pytest.mark.parametrize("caps", [True, False])
def test_what_is_saved_is_what_is_loaded(tmp_path, caps):
    path, whole = tmp_path / "a.safetensors", samples(caps=caps)
    save_attacks(path, whole)
    again = load_attacks(path)
    assert same(whole, again)
    assert np.isinf(again.scored[0].fooling_radius).any()
    with pytest.raises(AssertionError):
        assert same(whole, replace(again, labels=again.labels + 1))


def test_attacks_that_certify_may_have_fewer_images(tmp_path):
    path = tmp_path / "a.safetensors"
    others = (scored("square", 0.1, 4, 9, 0), scored("unbounded", 0.5, 4, 10, 0))
    whole = samples()
    whole = replace(whole, scored=(*whole.scored, *others))
    save_attacks(path, whole)
    assert same(whole, load_attacks(path))
    assert load_attacks(path).find("unbounded").images.shape == (4, 1, 8, 8)


def test_columns_may_be_views_and_broken_numbers(tmp_path):
    path, whole = tmp_path / "a.safetensors", samples()
    first = whole.scored[0]
    change = first.change_l2.copy()
    change[0, 0], change[1, 1] = np.nan, np.inf
    turned = replace(
        first, change_l2=change, images=first.images.transpose(0, 1, 3, 2), delta_l2=change[:, 0]
    )
    whole = replace(whole, scored=(turned, *whole.scored[1:]), ids=whole.ids[::-1])
    save_attacks(path, whole)
    assert same(whole, load_attacks(path))


def test_the_file_is_a_set_of_images(tmp_path):
    """The aligned attack's at the first radius, whatever else was made before it."""
    path = tmp_path / "a.safetensors"
    whole = samples(attacks=(("bare", 0.1), ("aligned", 0.1), ("fresh", 0.1), ("aligned", 0.25)))
    save_attacks(path, whole)
    images = load_images(str(path))
    assert np.array_equal(images.pixels, whole.scored[1].images)
    assert np.array_equal(images.labels, whole.labels)
    assert np.array_equal(images.ids, whole.ids)


class Halved:
    """P(x) = x / 2."""

    randomised, evaluations = False, 1

    def __init__(self, image):
        self.image = image

    def __call__(self, x, noise):
        return 0.5 * x


def test_the_file_can_be_a_probe(tmp_path):
    """An audit finds the attacked images by id and measures along the attack: here, one half."""
    path, images = tmp_path / "a.safetensors", grey_images(6)
    made = scored("aligned", 0.1, 6, 0)
    pixels = np.clip(images.pixels + 0.01, 0, 1).astype(np.float32)
    whole = replace(
        samples(6, int(images.ids[0]), (("aligned", 0.1),)), scored=(replace(made, images=pixels),)
    )
    save_attacks(path, whole)
    user_images = load_images(str(path))
    assert np.array_equal(user_images.ids, images.ids)
    outcome = run(
        Halved(DIGITS),
        images,
        user_images=user_images,
        probes=({"kind": "file", "path": str(path)},),
    )
    assert pick(outcome, "compression_rate", "l2", "file").value == pytest.approx(0.5, abs=1e-5)
    delta = pick(outcome, "distance_delta", "linf", "file").value
    assert delta == pytest.approx(0.01, abs=1e-6)


def foreign(path):
    save_file({"images": np.zeros((2, 1, 2, 2), np.float32)}, path)


def other_metadata(path):
    save_file({"ids": np.zeros(2)}, path, {"format": "pt"})


def not_json(path):
    save_file({"ids": np.zeros(2)}, path, {"attacks": "aligned"})


def column_missing(path):
    """Lists an attack that is not there."""
    with safe_open(path, "numpy") as file:
        columns = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(columns, path, {"attacks": json.dumps([["aligned", 0.1], ["fresh", 0.9]])})


def no_ids(path):
    with safe_open(path, "numpy") as file:
        names = [name for name in file.keys() if name != "ids"]  # noqa: SIM118
        columns = {name: file.get_tensor(name) for name in names}
        about = file.metadata()
    save_file(columns, path, about)


def of_compression(path):
    outcome = run(Halved(None), grey_images(2), draws=1)
    assert isinstance(outcome.samples, CompressionSamples)
    save_samples(path, outcome.samples)


def a_folder(path):
    path.unlink()
    path.mkdir()


DAMAGE = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("no tensors here, only words"),
    "cut-short": lambda path: path.write_bytes(path.read_bytes()[:-50]),
    "cut-header": lambda path: path.write_bytes(path.read_bytes()[:50]),
    "folder": a_folder,
    "foreign": foreign,
    "other-metadata": other_metadata,
    "not-json": not_json,
    "column-missing": column_missing,
    "no-ids": no_ids,
    "compression": of_compression,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_and_foreign_files_are_told_in_a_sentence(tmp_path, damage):
    path = tmp_path / "a.safetensors"
    save_attacks(path, samples(attacks=(("aligned", 0.1),)))
    load_attacks(path)
    damage(path)
    with pytest.raises(ReportError, match=r"a\.safetensors: is no file of attacks"):
        load_attacks(path)


@pytest.mark.parametrize(
    "about",
    [
        '{"aligned": 0.1}',
        '[["aligned", 0.1, 2]]',
        "7",
        "null",
        "[7]",
    ],
)
def test_other_lists_of_attacks_are_told_too(tmp_path, about):
    path = tmp_path / "a.safetensors"
    save_file({"ids": np.zeros(2)}, path, {"attacks": about})
    with pytest.raises(ReportError, match="is no file of attacks"):
        load_attacks(path)


# --- groups, and finding -----------------------------------------------------------------------


def test_groups_are_joined_in_order():
    parts = [samples(3, 100, caps=False), samples(2, 200, caps=False, seed=50)]
    whole = join_attacks(parts)
    assert whole.ids.tolist() == [100, 101, 102, 200, 201]
    assert [(s.name, s.eps) for s in whole.scored] == list(ATTACKS)
    assert whole.caps is None
    for f in fields(AttackSamples):
        if f.name not in ("scored", "caps", "example_images"):
            column = getattr(whole, f.name)
            assert np.array_equal(column[:3], getattr(parts[0], f.name))
            assert np.array_equal(column[3:], getattr(parts[1], f.name))
    for place in range(len(ATTACKS)):
        for f in fields(Scored):
            if f.name not in ("name", "eps"):
                column = getattr(whole.scored[place], f.name)
                for n, rows in ((0, slice(3)), (1, slice(3, 5))):
                    assert np.array_equal(column[rows], getattr(parts[n].scored[place], f.name))


def test_one_group_joined_is_itself():
    one = samples(caps=False)
    assert same(join_attacks([one]), one)


def test_joined_groups_survive_a_file(tmp_path):
    path = tmp_path / "a.safetensors"
    whole = join_attacks([samples(3, 100, caps=False), samples(2, 200, caps=False, seed=50)])
    save_attacks(path, whole)
    assert same(load_attacks(path), whole)
    assert load_images(str(path)).ids.tolist() == [100, 101, 102, 200, 201]


def test_rows_of_a_stronger_attack_replace_those_of_the_main_one():
    """In every column but name and radius; made_by says which attack it was."""
    main, other = scored("aligned", 0.1, 6, 0), scored("square", 0.1, 2, 1)
    before = replace(main, images=main.images.copy(), made_by=main.made_by.copy())
    found = with_rows(main, np.array([4, 1]), other)
    assert same(main, before)  # not changed in place
    assert (found.name, found.eps) == ("aligned", 0.1)
    assert found.made_by[[4, 1]].tolist() == [RUNS.index("square")] * 2
    for f in fields(Scored):
        if f.name in ("name", "eps"):
            continue
        column, own = getattr(found, f.name), getattr(main, f.name)
        assert np.array_equal(column[[0, 2, 3, 5]], own[[0, 2, 3, 5]], equal_nan=True)
        if f.name != "made_by":
            assert np.array_equal(column[[4, 1]], getattr(other, f.name), equal_nan=True)


def test_a_file_without_what_made_images_says_that_it_is_unknown(tmp_path):
    """Files before report schema 2.1."""
    path = tmp_path / "a.safetensors"
    save_attacks(path, samples())
    with safe_open(path, "numpy") as file:
        columns = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        about = file.metadata()
    older = {name: c for name, c in columns.items() if not name.endswith(".made_by")}
    assert len(older) == len(columns) - len(ATTACKS)
    save_file(older, path, about)
    found = load_attacks(path)
    assert all(s.made_by.tolist() == [-1] * 6 for s in found.scored)


def test_finding_an_attack():
    whole = samples()
    assert whole.find("aligned") is whole.scored[0]
    assert whole.find("aligned", 0.1) is whole.scored[0]
    assert whole.find("aligned", 0.25) is whole.scored[3]
    assert whole.find("fresh") is whole.scored[1]
    assert whole.find("fresh", 0.25) is None
    assert whole.find("square") is None
