"""The logit lens: what a state would be read as, if the model stopped there.

Each state of the residual stream is taken through the model's own final norm and unembedding,
``softmax(head(norm(h_l)))``, with whatever the model does to its logits after that. State 0 enters layer 0, state l
leaves layer l-1; none of them is final-normed before, so the last state gives the model's own prediction. On image
positions this is the patch lens of Neo et al. 2024 (arXiv 2410.07149).

Some studies leave the norm out, ``softmax(head(h_l))``: `unnormed_lens`. What the norm's weights and its scale do is not
in that reading, so its last state is not the model's prediction, and its probabilities are flatter or sharper by as much
as the state is shorter or longer than a normed one.

How far a reading is from what the model says in the end is KL(final || reading), in this direction as in the literature of
the tuned lens: 0 where the model has made up its mind.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from interp.lens.reading import provenance_of, read_states
from interp.lens.result import LensResult
from interp.models import VLM, Batch, Intervention


def logit_lens(
    vlm: VLM,
    batch: Batch,
    positions: Any = "image",
    top_k: int = 5,
    targets: Any = None,
    interventions: Sequence[Intervention] = (),
) -> LensResult:
    """Read every state at the selected positions: ``softmax(head(norm(h_l)))`` with the model's own norm and head, and
    what the model does to its logits behind them (a softcap, a scale).

    `targets` is one token id or word for all rows or one a row; its probability and rank are reported beside the top
    `top_k`.

    Raises `InputError` where no position is selected, `top_k` is not between 1 and the vocabulary, or a target is not
    one token.

    >>> import interp
    >>> vlm = interp.load("toy")
    >>> batch = vlm.prepare(texts=["a red 3 at top . what colour is the 3 ?"])
    >>> interp.lens.logit_lens(vlm, batch, positions="last", targets="red").words(-1, 0)[0]
    'red'
    """
    made = provenance_of(vlm, batch, interventions)
    return read_states(vlm, batch, positions, top_k, targets, interventions, vlm.readout, (), made, name="logit lens")


def unnormed_lens(
    vlm: VLM,
    batch: Batch,
    positions: Any = "image",
    top_k: int = 5,
    targets: Any = None,
    interventions: Sequence[Intervention] = (),
) -> LensResult:
    """The logit lens without the final norm: ``softmax(head(h_l))``, as Wu et al. 2024 (arXiv 2411.04986) read states.

    All else is as in `logit_lens`. `kl` is to the model's own prediction, which has the norm: it is not 0 at the last
    state.
    """
    made = provenance_of(vlm, batch, interventions, ("read without the final norm",))
    readout = vlm.readout.without_norm()
    return read_states(
        vlm, batch, positions, top_k, targets, interventions, readout, (), made, name="logit lens without the norm"
    )
