"""The logit lens: what would a state be read as, if the model stopped there?

Each state of the residual stream goes through the model's own final norm and unembedding,
``softmax(head(norm(h_l)))``, and through whatever the model does to its logits afterwards. State 0 enters layer 0, state l
leaves layer l-1; no state is normed before, so the last one gives the model's own prediction. On image positions this is
the patch lens of Neo et al. 2024 (arXiv 2410.07149).

Some studies leave the norm out, ``softmax(head(h_l))``: `unnormed_lens`. That reading lacks the norm's weights and its
scale. So its last state is not the model's prediction, and its probabilities are flatter or sharper, as the state is
shorter or longer than a normed one.

KL(final || reading) says how far a reading is from the model's prediction, in the direction of the tuned lens papers. It is
0 where the prediction is already made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from interp.lens.reading import Lens, LensResult, Request, read_states
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
    what the model does to its logits after them (a softcap, a scale).

    >>> import interp
    >>> vlm = interp.load("toy")
    >>> batch = vlm.prepare(texts=["a red 3 at top . what colour is the 3 ?"])
    >>> interp.lens.logit_lens(vlm, batch, positions="last", targets="red").words(-1, 0)[0]
    'red'

    `targets` is one token id or word for all rows, or one a row; a word is the token that continues its row's prompt.
    The result has its probability and rank, beside the top `top_k` words.

    Raises `InputError` where no position is selected, `top_k` is not between 1 and the vocabulary, or a target is not
    one token.
    """
    request = Request(positions, top_k, targets, interventions)
    return read_states(vlm, batch, Lens("logit lens", vlm.readout), request)


def unnormed_lens(
    vlm: VLM,
    batch: Batch,
    positions: Any = "image",
    top_k: int = 5,
    targets: Any = None,
    interventions: Sequence[Intervention] = (),
) -> LensResult:
    """The logit lens without the final norm: ``softmax(head(h_l))``, as Wu et al. 2024 (arXiv 2411.04986) read states.

    >>> import interp
    >>> vlm = interp.load("toy")
    >>> batch = vlm.prepare(texts=["a red 3 at top . what colour is the 3 ?"])
    >>> interp.lens.unnormed_lens(vlm, batch, positions="last").name
    'logit lens without the norm'

    All else is as in `logit_lens`. `kl` compares with the model's own prediction, which has the norm, so it is not 0 at the
    last state.
    """
    request = Request(positions, top_k, targets, interventions)
    notes = ("read without the final norm",)
    return read_states(
        vlm, batch, Lens("logit lens without the norm", vlm.readout.without_norm(), notes=notes), request
    )
