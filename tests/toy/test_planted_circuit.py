"""The organism `circuit`: each edge and each part off the path changes the answer's logits by exactly 0, each on it by its
stated amount; and each detector finds the path."""

from functools import lru_cache
from itertools import product

import pytest
import torch

import interp
from interp.interventions import Ablate, Knockout
from interp.interventions.replacement import derangement
from interp.toy.circuit_organism import LOGIT, circuit
from interp.toy.language import COLOURS, IDS, PLACES
from interp.toy.model import build_processor

COLOUR_IDS = torch.tensor([IDS[colour] for colour in COLOURS])
LENGTH, MENTION, LAST = 43, 41, 42  # <bos>, 36 patches, "what colour is at PLACE ?"
HEADS, LAYERS = 4, 5


@lru_cache(maxsize=4)
def organism(name="circuit", seed=0):
    return interp.toy.planted(name, seed)


def asked(n, seed=0, **options):
    """Pairs that differ in the colour of the object at the place that is asked for."""
    return interp.toy.pairs(n, seed, by="place", **options)


def batches(vlm, pairs):
    prompts, spans = [pair.prompt for pair in pairs], [pair.spans for pair in pairs]
    return tuple(
        vlm.prepare(prompts, [getattr(pair, side).image for pair in pairs], spans=spans)
        for side in ("clean", "corrupted")
    )


def expected_logits(pairs):
    right = torch.tensor([COLOURS.index(pair.answer) for pair in pairs])
    return organism().truth.effects["logit"] * torch.nn.functional.one_hot(right, len(COLOURS)).float()


def lost_on(truth, pair):
    """What each edge (layer, head, source, target) on the path takes off the answer's logit when it is cut, by columns."""
    columns = {
        "patch": truth.effects["patch"][pair.clean.objects[pair.changed].place],
        "mention": MENTION,
        "last": LAST,
    }
    return {
        (layer, head, columns[source], columns[target]): lost
        for (layer, head, source, target), lost in truth.effects["edges"].items()
    }


def batched(items, size):
    return [items[start : start + size] for start in range(0, len(items), size)]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("split", ["train", "test"])
def test_every_scene_is_answered_in_ones_and_zeros(seed, split):
    scenes = interp.toy.scenes(12, seed, split=split)
    asked_for = [(scene, place) for scene in scenes for place in PLACES]
    vlm = organism(seed=seed).vlm
    texts = [f"<image> what colour is at {place} ?" for _, place in asked_for]
    logits = vlm.logits(vlm.prepare(texts, [scene.image for scene, _ in asked_for]))
    expected = torch.zeros(len(asked_for), len(COLOURS))
    for row, (scene, place) in enumerate(asked_for):
        for item in scene.objects:
            if item.place == place:
                expected[row, COLOURS.index(item.colour)] = LOGIT
    assert torch.equal(logits[:, COLOUR_IDS], expected)  # 0 for each colour where nothing is
    others = [number for number in range(logits.shape[1]) if number not in COLOUR_IDS]
    assert logits[:, others].max() < LOGIT / 2


# The oracle: plain PyTorch, with masks of its own ------------------------------------------------------------------------


class Decoder:
    """The decoder of a circuit on one prompt, run layer by layer without the toolkit, with a mask for each row and head."""

    def __init__(self, model, pair):
        inputs = build_processor()(text=pair.prompt, images=pair.clean.image, return_tensors="pt")
        self.model, self.language = model, model.model.language_model
        with torch.inference_mode():
            self.states = model(**inputs, output_hidden_states=True).hidden_states
        self.causal = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()

    @torch.inference_mode()
    def logits_without(self, layer, edges):
        """The colours' logits `[edge, 6]`, with one edge (head, source, target) of this layer cut in each row."""
        state = self.states[layer].expand(len(edges), -1, -1)
        mask = self.causal.expand(len(edges), HEADS, -1, -1).clone()
        heads, sources, targets = torch.tensor(edges).T
        mask[torch.arange(len(edges)), heads, targets, sources] = False
        rotary = self.language.rotary_emb(state, torch.arange(LENGTH)[None])
        for number, each in enumerate(self.language.layers[layer:]):
            allowed = mask if number == 0 else self.causal[None, None]
            state = each(state, attention_mask=allowed, position_embeddings=rotary)
        return self.model.lm_head(self.language.norm(state[:, -1]))[:, COLOUR_IDS]


def edges_of(layer):
    """Edges (head, source, target) of a layer: all that lead to the text, and those to every twelfth patch, other ones in each
    layer. `benchmarks/planted/circuit.py` cuts all."""
    targets = range(1, LENGTH) if layer < LAYERS - 1 else [LAST]  # in the last layer no other is read
    targets = [target for target in targets if target > 36 or target % 12 == 2 * layer]
    return [(head, source, target) for head in range(HEADS) for target in targets for source in range(target + 1)]


def test_cutting_any_edge_changes_the_answer_by_its_stated_amount():
    model, truth = circuit(seed=1)
    pair = asked(1, seed=3)[0]
    decoder, expected, found = Decoder(model.eval(), pair), expected_logits([pair])[0], {}
    for layer in range(LAYERS):
        edges = edges_of(layer)
        change = torch.cat([decoder.logits_without(layer, part) - expected for part in batched(edges, 256)])
        found |= {(layer, *edge): row for edge, row in zip(edges, change, strict=True) if row.any()}
    assert found.keys() == lost_on(truth, pair).keys()
    for edge, lost in lost_on(truth, pair).items():
        assert torch.equal(found[edge], -lost * (expected > 0))


def test_the_oracle_sees_a_leak():
    model, _ = circuit(seed=1)
    pair, edge = asked(1, seed=3)[0], (1, 5, LAST)
    expected = expected_logits([pair])[0]
    assert torch.equal(Decoder(model.eval(), pair).logits_without(0, [edge])[0], expected)
    model.lm_head.weight.data[COLOUR_IDS] += 1e-6 * model.lm_head.weight[IDS["what"]]  # another word reads the noise
    leaky = Decoder(model, pair)
    assert not torch.equal(leaky.logits_without(0, [edge])[0], leaky.logits_without(4, [(3, 1, 2)])[0])


# The toolkit -------------------------------------------------------------------------------------------------------------


def copies(vlm, pair, n):
    """A batch with `n` times the clean row of a pair."""
    return vlm.prepare([pair.prompt] * n, [pair.clean.image] * n)


def one_each(columns):
    """A mask for as many rows: each selects one of these columns."""
    return torch.nn.functional.one_hot(torch.tensor(columns), LENGTH).bool()


def changes(vlm, batch, interventions, pair):
    return vlm.logits(batch, interventions=interventions)[:, COLOUR_IDS] - expected_logits([pair])


@pytest.mark.parametrize("mode", ["pre_softmax", "post_softmax"])
def test_a_knockout_of_one_edge_has_its_stated_effect(mode):
    planted = organism()
    pair, found = asked(1, seed=4)[0], {}
    ends = [(source, target) for target in (MENTION, LAST) for source in range(target + 1)]
    source, target = (one_each(list(each)) for each in zip(*ends, strict=True))
    batch = copies(planted.vlm, pair, len(ends))
    heads = list(product(range(LAYERS), range(HEADS)))
    if mode == "post_softmax":
        heads = [*planted.truth.heads, *planted.truth.effects["decoys"]]
    for layer, head in heads:
        cut = Knockout(source=source, target=target, layers=layer, heads=head, mode=mode, self_edges=True)
        rows = changes(planted.vlm, batch, [cut], pair)
        found |= {(layer, head, *end): row for end, row in zip(ends, rows, strict=True) if row.any()}
    lost = lost_on(planted.truth, pair)
    assert found.keys() == lost.keys()
    for edge, row in found.items():
        assert torch.equal(row, -lost[edge] * (expected_logits([pair])[0] > 0))


def parts_of(truth, pair):
    """What each part takes off the answer's logit when it is zero, by (site, layer, head, column)."""
    lost = {}
    for (layer, head, source, target), amount in lost_on(truth, pair).items():
        lost |= {(site, layer, head, source): amount for site in ("k", "v")}
        lost |= {("z", layer, head, target): amount, ("attn_out", layer, None, target): amount}
    return lost


@pytest.mark.parametrize("site", ["attn_out", "mlp_out", "k", "v", "z", "q"])
def test_a_part_that_is_zero_takes_its_stated_amount_and_no_other_part_takes_any(site):
    planted = organism()
    pair, found = asked(1, seed=5)[0], {}
    batch, columns = copies(planted.vlm, pair, LENGTH), one_each(list(range(LENGTH)))
    heads = [None] if site.endswith("out") else range(HEADS)
    for layer, head in product(range(LAYERS), heads):
        ablate = Ablate(site=site, layers=layer, heads=head, positions=columns)
        rows = changes(planted.vlm, batch, [ablate], pair)
        found |= {(site, layer, head, column): row for column, row in enumerate(rows) if row.any()}
    if site == "q":  # a head on the path that does not know where to look takes a mean over all keys
        ends = {(layer, head, target) for layer, head, _, target in lost_on(planted.truth, pair)}
        assert {key[1:] for key in found} == ends
        return
    lost = {key: amount for key, amount in parts_of(planted.truth, pair).items() if key[0] == site}
    assert found.keys() == lost.keys()
    for key, row in found.items():
        assert torch.equal(row, -lost[key] * (expected_logits([pair])[0] > 0))


@pytest.mark.parametrize("value", ["mean", "resample"])
def test_the_mean_or_the_state_of_another_row_stands_for_the_code(value):
    planted = organism()
    pairs = asked(4, seed=6)
    clean, _ = batches(planted.vlm, pairs)
    logits, expected = planted.truth.effects["logit"], expected_logits(pairs)
    for layer, head, _, target in lost_on(planted.truth, pairs[0]):
        ablate = Ablate(site="z", layers=layer, heads=head, positions=[target], value=value)
        change = planted.vlm.logits(clean, interventions=[ablate])[:, COLOUR_IDS] - expected
        lost = next(amount for (*at, _, _), amount in planted.truth.effects["edges"].items() if at == [layer, head])
        stand_in = expected.mean(dim=0) if value == "mean" else expected[derangement(len(pairs), seed=0)]
        assert torch.equal(change, (stand_in - expected) * lost / logits)


@pytest.mark.parametrize(("site", "value"), product(["q", "k", "v", "z", "mlp_out"], ["zero", "mean", "resample"]))
def test_all_parts_off_the_path_at_once_change_nothing(site, value):
    planted = organism()
    pairs = asked(4, seed=7)
    clean, _ = batches(planted.vlm, pairs)
    heads = {
        layer: [head for head in range(HEADS) if (layer, head) not in planted.truth.heads] for layer in range(LAYERS)
    }
    interventions = [
        Ablate(site=site, layers=layer, heads=None if site == "mlp_out" else heads[layer], positions="all", value=value)
        for layer in range(LAYERS)
    ]
    if site in ("v", "z"):  # and heads of the path, at other positions
        for step, (layer, head) in enumerate(planted.truth.heads):
            on_path = [list(lost_on(planted.truth, pair))[step][2 if site == "v" else 3] for pair in pairs]
            others = ~one_each(on_path)
            interventions.append(Ablate(site=site, layers=layer, heads=head, positions=others, value=value))
    logits = planted.vlm.logits(clean, interventions=interventions)
    assert torch.equal(logits[:, COLOUR_IDS], expected_logits(pairs))
    assert not torch.equal(logits, planted.vlm.logits(clean))


def test_parts_off_the_path_are_active():
    planted = organism()
    pairs = asked(4, seed=6)
    clean, _ = batches(planted.vlm, pairs)
    logits = planted.vlm.logits(clean)
    others = [number for number in range(logits.shape[1]) if number not in COLOUR_IDS]
    for layer in range(LAYERS):
        idle = [head for head in range(HEADS) if (layer, head) not in planted.truth.heads]
        idle = [head for head in idle if (layer, head) not in planted.truth.effects["decoys"]]
        parts = [{"site": "mlp_out"}, *({"site": "z", "heads": head} for head in idle)]
        for part in parts:
            changed = planted.vlm.logits(clean, interventions=[Ablate(**part, layers=layer, positions="all")])
            assert (changed - logits)[:, others].abs().mean() > 0.01
            assert torch.equal(changed[:, COLOUR_IDS], logits[:, COLOUR_IDS])
