"""The numbers of more than forty public calls, so that a change of the code's inside can be shown to change none of them.

    python benchmarks/golden.py before.json              # at the commit before the change
    python benchmarks/golden.py after.json before.json   # at the commit after it, compared bit by bit

Every call is on the bundled toy or on clouds drawn from a fixed seed, on one thread. Of each result the digest of every
array (dtype, shape, bytes) and every plain value is kept. Digests from two machines may differ in the last bit; those of two
commits on one machine must not.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from dataclasses import fields, is_dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import interp
from interp import geometry, lens, patching, probes
from interp.interventions import Ablate, Knockout, Patch, Project, Reweight, Scale, Skip, Steer, Truncate

LEFT_OUT = ("provenance", "probes")  # versions of packages differ, and fitted probes are read by their accuracies


def digest(value) -> object:
    """A value as plain JSON: arrays by the hash of their bytes."""
    if isinstance(value, torch.Tensor | np.ndarray):
        array = torch.as_tensor(np.array(value) if isinstance(value, np.ndarray) else value).detach().cpu().contiguous()
        raw = array.view(torch.int16).numpy() if array.dtype == torch.bfloat16 else array.numpy()
        return f"{array.dtype} {tuple(array.shape)} {hashlib.sha256(raw.tobytes()).hexdigest()[:16]}"
    if isinstance(value, pd.DataFrame):
        return {str(name): [digest(cell) for cell in value[name].tolist()] for name in value.columns}
    if isinstance(value, float):
        return value.hex()
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, np.generic):
        return digest(value.item())
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: digest(getattr(value, item.name)) for item in fields(value) if item.name not in LEFT_OUT}
    if isinstance(value, dict):
        return {str(name): digest(item) for name, item in value.items()}
    if isinstance(value, list | tuple | range):
        return [digest(item) for item in value]
    raise TypeError(f"{type(value).__name__} has no digest")


def clouds() -> dict[str, torch.Tensor]:
    """A pair of clouds that share some of what they say, stacks of them, and labels."""
    draw = torch.Generator().manual_seed(5)
    shared = torch.randn(160, 5, generator=draw, dtype=torch.float32)
    x = shared @ torch.randn(5, 24, generator=draw, dtype=torch.float32) + 0.1 * torch.randn(
        160, 24, generator=draw, dtype=torch.float32
    )
    y = shared @ torch.randn(5, 16, generator=draw, dtype=torch.float32) + 0.5 * torch.randn(
        160, 16, generator=draw, dtype=torch.float32
    )
    stack = torch.stack(
        [x + level * torch.randn(160, 24, generator=draw, dtype=torch.float32) for level in (0.0, 0.5, 1.0)]
    )
    other = torch.stack(
        [y + level * torch.randn(160, 16, generator=draw, dtype=torch.float32) for level in (1.0, 0.5, 0.0)]
    )
    return {"x": x, "y": y, "stack": stack, "other": other, "labels": torch.arange(160) % 4}


def calls():
    """Each public call by name, as a function to call."""
    vlm, base = interp.load("toy", device="cpu"), interp.load("toy:base", device="cpu")
    scenes = interp.toy.scenes(36, seed=0, distinct=True)
    pair = interp.toy.pairs(2, seed=0, change="colour")[0]
    clean = vlm.prepare(texts=[pair.prompt], images=[pair.clean.image], spans={"asked": "colour"})
    corrupted = vlm.prepare(texts=[pair.prompt], images=[pair.corrupted.image])
    asked = [scene.questions[0] for scene in scenes]
    batch = vlm.prepare(texts=[question.prompt for question in asked[:6]], images=[scene.image for scene in scenes][:6])
    metric = patching.logit_difference(pair.answer, pair.other)
    answer = patching.probability(pair.answer)
    many = [str(len(scene.objects)) for scene in scenes]
    own = vlm.logits(clean)
    acts = interp.capture(vlm, scenes, sites=("resid", "z", "attn_out", "mlp_out", "resid_mid"), progress=False)
    images = acts["resid"][...]
    texts = interp.capture(vlm, scenes.captions(), positions="text", progress=False)["resid"][...]
    z = interp.capture(vlm, [batch], sites=("z",), positions="last", reduce="last", progress=False)
    c = clouds()
    x, y, stack, other, labels = (c[name] for name in ("x", "y", "stack", "other", "labels"))
    direction = torch.linspace(-1, 1, vlm.structure.d_model, dtype=torch.float32)

    def edited(*interventions):
        return lambda: (vlm.logits(batch, list(interventions)), vlm.generate(batch, 6, list(interventions)))

    def tuned_lens():
        fitted = lens.TunedLens.fit(vlm, [batch], positions="all", epochs=2)
        return fitted, lens.tuned_lens(vlm, clean, fitted)

    def on_disk():
        with tempfile.TemporaryDirectory() as folder:
            kept = interp.capture(
                vlm,
                scenes,
                sites=("resid", "vision", "projector", "pattern"),
                reduce="none",
                out=folder,
                progress=False,
            )
            return {site: kept[site][...] for site in kept}, kept.rows, kept.columns, kept.ids, kept.labels

    yield "structure", lambda: vlm.structure.to_dict()
    # The residue of a least-squares solve moves in its last bits with where arrays lie in memory: three digits of it count.
    yield "check", lambda: [(c.name, c.outcome, f"{c.error:.3g}", c.bound, c.detail) for c in vlm.check().checks]
    yield "prepare", lambda: (batch.inputs, batch.tokens, [batch.positions[k] for k in ("image", "text", "special")])
    yield "grid", lambda: (clean.positions.grid(0), clean.positions["asked"], clean.positions["question"])
    yield "logits", lambda: vlm.logits(batch, positions="all")
    yield "generate", lambda: vlm.generate(batch)
    yield "patch", edited(Patch(site="resid_pre", layers=3, positions="image", value=images[3].mean(dim=0)))
    yield "patch row", edited(Patch(site="z", layers=[1, 2], positions="last", value=batch.row(0), heads=[0, 2]))
    yield "ablate mean", edited(Ablate(site="attn_out", layers=[2, 5], positions="image", value="mean"))
    yield "ablate resample", edited(Ablate(site="mlp_out", layers="all", positions="last", value="resample", seed=3))
    yield "knockout", edited(Knockout(source="image", target="after_image", layers=range(2, 6)))
    yield "knockout post", edited(Knockout(source="image", target="last", layers="all", mode="post_softmax", heads=[1]))
    yield "truncate", edited(Truncate(positions="image", from_layer=4))
    yield "skip", edited(Skip(layers=[3, 4], positions="image"))
    yield "steer", edited(Steer(direction=direction, layers=4, positions="text", scale=2.0))
    yield "project", edited(Project(direction=direction, layers="all", positions="all"))
    yield "scale", edited(Scale(site="mlp_out", layers=[1, 6], positions="all", factor=0.5))
    yield "reweight", edited(Reweight(kind="shuffled", layers="all", seed=2))
    yield "reweight tower", edited(Reweight(kind="uniform", layers="all", tower="vision"))
    yield "capture", lambda: {site: acts[site][...] for site in acts}
    yield "capture on disk", on_disk
    yield "capture sample", lambda: interp.capture(vlm, scenes, reduce="sample", seed=7, progress=False)["resid"][...]
    yield (
        "capture pattern",
        lambda: interp.capture(
            vlm, [batch], sites=("q", "k", "v", "pattern"), reduce="last", positions="last", progress=False
        )["pattern"][...],
    )
    yield "patch_sweep", lambda: patching.patch_sweep(vlm, clean, corrupted, metric=metric)
    yield (
        "patch_sweep heads",
        lambda: patching.patch_sweep(
            vlm, clean, corrupted, site="z", positions="last", heads="all", layers=[4, 5, 6], metric=metric
        ),
    )
    yield "attribution_patch", lambda: patching.attribution_patch(vlm, clean, corrupted, metric=metric)
    yield "flow", lambda: patching.flow(vlm, clean, window=3, metric=answer)
    yield "layer_sweep", lambda: patching.layer_sweep(vlm, batch, metric=patching.cross_entropy(pair.answer))
    yield (
        "kl",
        lambda: patching.layer_sweep(vlm, clean, metric=patching.kl_divergence(own), window=2, positions="image"),
    )
    yield "transplant", lambda: patching.transplant(vlm, base, layers=[2, 3]).logits(batch)
    yield "logit_lens", lambda: lens.logit_lens(vlm, clean, targets=pair.answer)
    yield "unnormed_lens", lambda: lens.unnormed_lens(vlm, clean, positions="last")
    yield "tuned_lens", tuned_lens
    yield "attribution", lambda: lens.direct_logit_attribution(vlm, clean, pair.answer, heads=True)
    yield "attention_share", lambda: lens.attention_share(vlm, batch)
    yield "attention_masses", lambda: lens.attention_masses(vlm, batch)
    yield "decomposition", lambda: lens.vocabulary_decomposition(images[5, :6], lens.dictionary_of(vlm, "embed"), 3)
    yield "head_pursuit", lambda: lens.head_pursuit(vlm, z, ["red", "blue", "green", "yellow"], 2)
    yield "projector", lambda: lens.projector_report(vlm, scenes, batch_size=8, k=5)
    yield "visual tokens", lambda: lens.visual_token_stats(lens.quantise(images[0], 8, seed=0), torch.arange(36) // 4)
    yield "probe_layers", lambda: probes.probe_layers(acts, many, seed=1)
    yield "probe ridge", lambda: probes.probe_layers(stack, labels, kind="ridge", permutations=50, transfer=stack + 0.1)
    yield (
        "probe mean",
        lambda: probes.probe_layers(stack, labels, kind="mean_difference", groups=torch.arange(160) // 2),
    )
    yield "linear probe", lambda: probes.LinearProbe().fit(x, labels).decision_function(x)
    yield "dimension", lambda: [geometry.intrinsic_dimension(x, method=m) for m in ("2nn", "gride", "mle")]
    yield "scaling", lambda: geometry.dimension_scaling(x, range_max=64)
    yield (
        "overlaps",
        lambda: [
            geometry.neighbor_overlap(x, y, k=10),
            geometry.mutual_knn(x, y),
            geometry.cknna(x, y),
            geometry.label_overlap(x, labels, k=10),
            geometry.cycle_knn(x, y, k=10),
            geometry.overlap_interval(x, y, k=10, subsamples=20),
        ],
    )
    yield "imbalance", lambda: geometry.information_imbalance(x, y, k=3)
    yield (
        "kernels",
        lambda: [
            geometry.cka(x, y),
            geometry.cka(x, y, debiased=False),
            geometry.cka(x, y, kernel="rbf"),
            geometry.distance_correlation(x, y),
            geometry.rsa(x, y),
        ],
    )
    yield (
        "subspaces",
        lambda: [
            geometry.procrustes(x, y),
            geometry.svcca(x, y, components=4),
            geometry.pwcca(x, y, components=4),
            geometry.principal_angles(x[:, :8], y[:, :8], components=3),
        ],
    )
    yield "correlation", lambda: geometry.id_correlation(x, y, permutations=30)
    yield "clusters", lambda: (geometry.density_peaks(x), geometry.find_peaks(x), geometry.log_density(x))
    yield "homogeneity", lambda: geometry.homogeneity(labels, torch.arange(160) % 3)
    yield "spectra", lambda: [geometry.spectral_entropy(x), geometry.participation_ratio(x), geometry.curvature(stack)]
    yield "modality_gap", lambda: geometry.modality_gap(x[:, :16], y, shuffles=30)
    yield "weights", lambda: geometry.learn_weights(x[:, :4], y, steps=10, shuffles=2)
    for name in ("neighbor_overlap", "mutual_knn", "information_imbalance", "cka", "rsa", "procrustes", "svcca"):
        yield f"alignment {name}", lambda name=name: geometry.alignment_matrix(stack, other, metric=name, subsamples=8)
    yield "phase", lambda: (lambda m: (m.phase(tau=0.5), m.bypass()))(geometry.alignment_matrix(images, texts, k=5))
    yield "compare", lambda: geometry.compare(stack, other, labels=labels, subsamples=4, permutations=20).to_frame()
    yield (
        "compare toy",
        lambda: geometry.compare(
            images,
            texts,
            metrics=("neighbor_overlap", "cka", "2nn", "paired_cosine", "homogeneity"),
            subsamples=4,
            permutations=10,
        ).to_frame(),
    )
    yield "evaluate", lambda: interp.toy.evaluate("toy:tuned", n=20)
    yield "scenes", lambda: [(s.caption, s.patch_labels, np.asarray(s.image)) for s in interp.toy.scenes(4, seed=3)]


def main() -> None:
    """Write the digests to the first path; with a second, compare with what stands there."""
    torch.set_num_threads(1)
    made, failed = {}, []
    for name, call in calls():
        try:
            made[name] = digest(call())
        except Exception as error:  # shown with the others, so that one run tells of all
            failed.append(f"{name}: {type(error).__name__}: {error}")
    Path(sys.argv[1]).write_text(json.dumps(made, indent=1, sort_keys=True))
    print(f"{len(made)} calls, {len(failed)} failed", *failed, sep="\n  ")
    if len(sys.argv) > 2:
        before = json.loads(Path(sys.argv[2]).read_text())
        other = [name for name in sorted({*before, *made}) if before.get(name) != made.get(name)]
        print(f"{len(other)} of {len(before)} calls differ", *other, sep="\n  ")
        sys.exit(bool(other or failed))
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
