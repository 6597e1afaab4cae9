"""What a projector does, on clouds with known answers and against plain hooks on the toy."""

import copy
import math

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

import interp
import zoo
from interp.lens import ProjectorResult, dictionary_of, neighbours_kept, projector_report, spread_of, word_alignment
from interp.toy.language import COLOURS
from interp.words.projector import moves_as_expected, projected, trials


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def seen(toy):
    scenes = interp.toy.scenes(30, seed=0)
    batch = toy.prepare(["<image>"] * 30, [scene.image for scene in scenes])
    objects = [[(scene.patch_labels == i, each.colour) for i, each in enumerate(scene.objects)] for scene in scenes]
    return scenes, batch, objects


def test_spread_of_a_known_spectrum():
    """Orthogonal columns with variances 4, 2, 1, 1."""
    columns = torch.linalg.qr(normal(50, 5) * 1.0)[0]
    columns = torch.linalg.qr(torch.cat([torch.ones(50, 1, dtype=torch.float64), columns], dim=1))[0][:, 1:5]
    turned = torch.linalg.qr(normal(4, 4, seed=2))[0]
    entropy, ratio = spread_of(columns * torch.tensor([4.0, 2, 1, 1], dtype=torch.float64).sqrt() @ turned + 7)
    shares = np.array([4, 2, 1, 1]) / 8
    assert entropy == pytest.approx(-(shares * np.log(shares)).sum())
    assert ratio == pytest.approx(1 / (shares**2).sum())


def test_neighbours_are_scikit_learns():

    before, after = normal(90, 6), normal(90, 4, seed=1) + normal(90, 6)[:, :4]
    near, still = (
        NearestNeighbors(n_neighbors=8).fit(x.numpy()).kneighbors(return_distance=False) for x in (before, after)
    )
    expected = np.mean([len(set(a) & set(b)) / 8 for a, b in zip(near, still, strict=True)])
    assert neighbours_kept(before, after, 8) == pytest.approx(expected)
    assert neighbours_kept(before, before @ torch.linalg.qr(normal(6, 6))[0] * 3 + 1, 8) == 1
    strangers = np.mean([neighbours_kept(before, normal(90, 6, seed=seed), 8) for seed in range(2, 12)])
    assert strangers == pytest.approx(8 / 89, abs=0.015)


def test_planted_words_are_aligned_and_strangers_are_not():
    words = normal(20, 16)
    lists = [[n % 6, 10 + n % 5] for n in range(30)]
    objects = torch.stack([words[each].sum(dim=0) for each in lists]) + 0.1 * normal(30, 16, seed=1) + 2
    found = word_alignment(objects, lists, words)
    unit = words / words.norm(dim=1, keepdim=True)
    cosines = (objects / objects.norm(dim=1, keepdim=True)) @ unit.T
    assert found.value == pytest.approx(float(np.mean([cosines[n, each].mean() for n, each in enumerate(lists)])))
    assert found.p == pytest.approx(1 / 201)
    assert found.value > found.null + 0.2
    strangers = [word_alignment(normal(30, 16, seed=seed), lists, words, 50) for seed in range(2, 22)]
    assert 0.3 < np.mean([each.p for each in strangers]) < 0.7


def test_patches_are_what_the_projector_gets_and_gives(toy, seen):
    _, batch, _ = seen
    held = {}
    handle = toy.model.get_submodule(toy.structure.projector).register_forward_hook(
        lambda module, given, gave: held.update(given=given[0], gave=gave)
    )
    with torch.no_grad():
        toy.model(**toy.inputs_of(batch))
    handle.remove()
    before, after, rows = projected(toy, batch)
    assert torch.equal(before[:, 0], held["given"].flatten(0, -2))
    assert torch.equal(after, held["gave"].flatten(0, -2))
    assert torch.equal(rows, torch.arange(30).repeat_interleave(36))
    acts = interp.capture(toy, [batch], sites=("resid",), positions="image", reduce="none", progress=False)
    torch.testing.assert_close(acts["resid"][0], after, atol=1e-5, rtol=1e-5)


def test_the_report_is_its_parts(toy, seen, tmp_path):
    scenes, batch, objects = seen
    found = projector_report(toy, batch, objects, top_k=3, k=7)
    made_of, after, _ = projected(toy, batch)
    before = made_of[:, 0]
    for at, cloud in enumerate((before, after)):
        assert (float(found.entropy[at]), float(found.participation[at])) == pytest.approx(spread_of(cloud))
    assert float(found.kept[1]) == pytest.approx(neighbours_kept(before, after, 7))
    assert found.kept_chance == 7 / (30 * 36 - 1)
    table = dictionary_of(toy, "embed").rows
    cosines = torch.nn.functional.cosine_similarity(after[5][None], table)
    assert found.word_ids[5].tolist() == cosines.topk(3).indices.tolist()
    labels = np.stack([scene.patch_labels.flatten() for scene in scenes])
    shapes = [
        after[torch.from_numpy(labels.flatten() == i) & (found.rows == row)].mean(dim=0)
        for row, scene in enumerate(scenes)
        for i in range(len(scene.objects))
    ]
    ids = [[toy.tokenizer.convert_tokens_to_ids(each.colour)] for scene in scenes for each in scene.objects]
    assert found.alignment == pytest.approx(word_alignment(torch.stack(shapes), ids, table).value, abs=1e-6)
    again = ProjectorResult.load(found.save(tmp_path / "projector.safetensors"))
    assert again.words(9) == found.words(9)
    assert len(found.to_frame()) == 7


def test_batches_together_are_one(toy, seen):
    _, batch, objects = seen
    halves = [
        toy.prepare(encoding={name: each[part] for name, each in batch.inputs.items()})
        for part in (slice(0, 15), slice(15, 30))
    ]
    whole, parts = projector_report(toy, batch, objects), projector_report(toy, halves, objects)
    torch.testing.assert_close(whole.participation, parts.participation, atol=1e-3, rtol=1e-4)
    assert torch.equal(whole.rows, parts.rows)
    assert parts.alignment == pytest.approx(whole.alignment, abs=1e-5)


def test_words_may_be_arrays():
    objects, table = normal(3, 4), normal(6, 4, seed=1)
    lists = [[0, 1], [2, 3], [5, 5]]
    there = word_alignment(objects, lists, table)
    assert word_alignment(objects, torch.tensor(lists), table) == there
    assert word_alignment(objects, [np.array(each) for each in lists], table) == there


def test_a_projector_elsewhere_is_measured_alike(toy, remote_toy, seen):
    _, batch, objects = seen
    few = toy.prepare(encoding={name: each[:3] for name, each in batch.inputs.items()})
    here, there = (projector_report(vlm, few, objects[:3]) for vlm in (toy, remote_toy))
    for name in ("entropy", "participation", "kept", "word_cosines"):
        torch.testing.assert_close(getattr(there, name), getattr(here, name), atol=1e-5, rtol=0)
    assert there.alignment == pytest.approx(here.alignment, abs=1e-5)
    assert there.alignment_p == here.alignment_p


def test_scenes_are_taken_as_their_batches(toy, seen):
    scenes, batch, objects = seen
    whole, found = projector_report(toy, batch, objects), projector_report(toy, scenes, objects, batch_size=12)
    assert torch.equal(whole.rows, found.rows)
    assert torch.equal(whole.word_ids, found.word_ids)
    torch.testing.assert_close(whole.entropy, found.entropy)
    assert found.alignment == pytest.approx(whole.alignment, abs=1e-5)


def test_rows_without_an_image_have_no_patches(toy, few):
    data = [(None, "a red 3 at top ."), (few[0].image, None), (None, "a blue 7 at left .")]
    found = projector_report(toy, data, batch_size=1)
    assert found.rows.tolist() == [1] * 36


@pytest.fixture(scope="module")
def merging():
    """A model whose projector makes one token of four patches, and a batch for it."""
    vlm = interp.load(model=copy.deepcopy(zoo.build("qwen2_vl")), device="cpu", check=False)
    return vlm, vlm.prepare(encoding=zoo.encode("qwen2_vl"))


def test_merged_patches_stand_beside_their_token(merging):
    """The projector is given the patches of one token alone."""
    vlm, batch = merging
    made_of, after, rows = projected(vlm, batch)
    merger = vlm.model.get_submodule(vlm.structure.projector)
    with torch.no_grad():
        alone = torch.cat([merger(four) for four in made_of])
    assert made_of.shape == (16, 4, 64)
    torch.testing.assert_close(alone, after, atol=1e-5, rtol=1e-5)
    acts = interp.capture(vlm, [batch], sites=("resid",), positions="image", reduce="none", progress=False)
    torch.testing.assert_close(acts["resid"][0], after, atol=1e-5, rtol=1e-5)
    assert rows.tolist() == acts.rows.tolist()


def test_merged_patches_are_measured_each_side_by_its_own_number(merging):
    vlm, batch = merging
    made_of, after, _ = projected(vlm, batch)
    shows = torch.arange(6) < 2
    found = projector_report(vlm, batch, [[(shows, 7)], [(torch.ones(10, dtype=torch.bool), [9, 11])]], k=3)
    assert found.merged == 4
    assert found.entropy[:2].tolist() == pytest.approx([spread_of(made_of.flatten(0, 1))[0], spread_of(after)[0]])
    assert float(found.kept[1]) == pytest.approx(neighbours_kept(made_of.mean(dim=1), after, 3))
    assert found.kept_chance == 3 / 15
    four = made_of.flatten(1)
    mapped = four @ torch.randn(256, 64, generator=torch.Generator().manual_seed(0))
    assert (float(found.entropy[2]), float(found.participation[2])) == pytest.approx(spread_of(mapped))
    assert float(found.kept[2]) == pytest.approx(neighbours_kept(made_of.mean(dim=1), mapped, 3))
    assert found.word_ids.shape == (16, 5)
    shapes = torch.stack([after[:2].mean(dim=0), after[6:].mean(dim=0)])
    assert found.alignment == pytest.approx(
        word_alignment(shapes, [[7], [9, 11]], dictionary_of(vlm, "embed").rows).value, abs=1e-6
    )


class Mixing(torch.nn.Module):
    """A merger whose tokens are made of other patches than those that stand together."""

    def __init__(self, merger, mix):
        super().__init__()
        self.merger, self.mix = merger, mix

    def forward(self, x):
        return self.merger(self.mix(x))


@pytest.mark.parametrize(
    "mix",
    [
        lambda x: x.roll(1, dims=0),
        lambda x: x.unflatten(0, (4, -1)).transpose(0, 1).flatten(0, 1),
        lambda x: torch.cat([x[:-1], x[-1:] + x[:1]]),  # one foreign patch in one token
        lambda x: x * (torch.arange(len(x)) % 4 > 0)[:, None],  # a patch of each that does not count
    ],
)
def test_what_each_token_is_made_of_is_proved(merging, mix):
    vlm, _ = merging
    merger = vlm.model.get_submodule(vlm.structure.projector)
    given = torch.randn(64, 64, generator=torch.Generator().manual_seed(1))
    assert bool(moves_as_expected(given, merger, given, trials(16, 4), 1e-2))
    assert not bool(moves_as_expected(given, Mixing(merger, mix), given, trials(16, 4), 1e-2))


def test_a_projector_that_pools_squares_is_refused():
    vlm = interp.load(model=zoo.build("gemma3"), device="cpu", check=False)
    with pytest.raises(interp.LayoutError, match=r"makes 32 tokens of 128 patches, and it was not proved[^\n]*$"):
        projected(vlm, vlm.prepare(encoding=zoo.encode("gemma3")))


def test_a_projector_that_gives_more_than_tokens_is_tried_by_them(merging):
    """Some give their weights beside the tokens; one of these pools with learnt queries, and is refused by name."""
    vlm, _ = merging
    merger = vlm.model.get_submodule(vlm.structure.projector)
    given = torch.randn(64, 64, generator=torch.Generator().manual_seed(1))
    assert bool(moves_as_expected(given, lambda x: (merger(x), None), given, trials(16, 4), 1e-2))
    pooling = interp.load(model=zoo.build("kosmos-2.5"), device="cpu", check=False)
    with pytest.raises(interp.LayoutError, match=r"it was not proved which patches become which token[^\n]*$"):
        projected(pooling, pooling.prepare(encoding=zoo.encode("kosmos-2.5")))


def test_a_projector_that_gives_words_is_seen(toy, seen):
    """Patches replaced by the embedding of their object's colour: alignment 1, over as many directions as colours."""
    scenes, _, _ = seen
    table = dictionary_of(toy, "embed").rows
    ids = [toy.tokenizer.convert_tokens_to_ids(each.colour) for scene in scenes for each in scene.objects]
    found = word_alignment(table[ids], [[token] for token in ids], table)
    assert found.value == pytest.approx(1, abs=1e-6)
    assert found.p < 0.01
    assert spread_of(table[ids])[0] < math.log(len(COLOURS) - 1) + 1e-9


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: spread_of(torch.ones(4, 3)), "are all the same"),
        (lambda: neighbours_kept(normal(5, 3), normal(6, 3)), "5 patches before and 6 after"),
        (lambda: neighbours_kept(normal(5, 3), normal(5, 3), 5), "k=5: expected a number of neighbours from 1 to 4"),
        (lambda: word_alignment(normal(2, 3), [[0]], normal(4, 3)), "1 lists of words for 2 objects"),
        (lambda: word_alignment(normal(1, 3), [[]], normal(4, 3)), "one word or more for each"),
        (lambda: word_alignment(normal(1, 3), [[0]], normal(4, 5)), "objects of width 3 and words of width 5"),
        (lambda: word_alignment(normal(1, 3), [[-1]], normal(4, 3)), "word -1: expected a row of the table, 0 to 3"),
        (lambda: word_alignment(normal(1, 3), [[4]], normal(4, 3)), "word 4: expected"),
        (lambda: word_alignment(normal(1, 3), [["red"]], normal(4, 3)), "word 'red': expected"),
    ],
)
def test_what_cannot_be_measured(call, words):
    with pytest.raises(interp.InputError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("unchecked")
def test_objects_that_do_not_fit(toy, seen, mixed):
    _, batch, objects = seen
    for wrong, words in [
        (objects[:3], "objects of 3 rows for 30 rows of data"),
        ([[(np.ones(35, dtype=bool), "red")]] * 30, "a mask of 35"),
        ([[(np.zeros(36, dtype=bool), "red")]] * 30, "a mask of 36 with 0 set"),
        ([[]] * 30, "objects has no object"),
    ]:
        with pytest.raises(interp.InputError, match=words):
            projector_report(toy, batch, wrong)
    for wrong, words in [
        (7, "objects=7: expected a list for each row"),
        ([7] * 30, "an object of row 0 is 7: expected a pair"),
        ([["red"]] * 30, "an object of row 0 is 'red': expected a pair"),
        ([[(np.ones(36, dtype=bool), None)]] * 30, "an object of row 0 is .*: expected a pair"),
        ([[(None, "red")]] * 30, "an object of row 0 is .*: expected a pair"),
        ([[(np.ones(36, dtype=bool), [])]] * 30, "an object of row 0 has no word"),
        ([[(np.full(36, np.nan), "red")]] * 30, "a mask of 36 with 36 set, of torch.float64: expected a Bool"),
    ]:
        with pytest.raises(interp.InterpError, match=words) as caught:
            projector_report(toy, batch, wrong)
        assert "\n" not in str(caught.value)
    with pytest.raises(interp.InputError, match="shuffles=0: expected an int of 1 or more"):
        projector_report(toy, batch, shuffles=0)
    with pytest.raises(interp.InputError, match="has no image"):
        projector_report(toy, mixed.row(1))
