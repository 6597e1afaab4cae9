"""Tuning a part of a model: a band of its layers, the connector, adapters, on conversations.

    result = tune(vlm, conversations, layers=range(6, 16))
    result.vlm, result.loss, result.unchanged

Everything else stays as it is, bit for bit, and costs neither gradients nor the optimiser's state. The backward pass ends at the
lowest trained parameter, so a band of layers saves the way through all layers below it; with the connector, which stands
below all layers, it goes through all of them.

With `out=` a training leaves a checkpoint of transformers, and while it runs ``OUT.partial`` beside it, from which
``resume=True`` goes on. `interp.tuning.trainer` says what is the Trainer's and what is ours.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from interp.arguments import as_number, checked_flag
from interp.errors import InputError, reason_of, shown
from interp.models import VLM
from interp.progress import progress_bar
from interp.provenance import Provenance, package_versions
from interp.tuning.examples import Collator, TrainingRows, training_rows
from interp.tuning.lora import plain_config
from interp.tuning.patch_alignment import PatchAlignment
from interp.tuning.trained_parts import trained_names, training_notes
from interp.tuning.training_arguments import DEFAULTS, changed_fields, training_arguments
from interp.tuning.tune_result import TuneResult, record_of
from interp.tuning.tuned_model import autocast_precision, fingerprints, finished, tunable_model
from interp.tuning.work_folder import WorkFolder

if TYPE_CHECKING:
    from interp.tuning.trainer import TuningTrainer


def tune(
    vlm: VLM,
    data: Any,
    layers: int | str | Iterable[int] = "all",
    connector: bool = False,
    vision: bool = False,
    head: bool = False,
    lora: Any = None,
    *,
    arguments: Any = None,
    max_length: int | None = None,
    patch_alignment: float = 0.0,
    out: Any = None,
    resume: bool = False,
) -> TuneResult:
    """Train these parts of a copy of `vlm` on the answers in `data`, and say what that did and cost.

    >>> import interp
    >>> vlm = interp.load("toy:stage1")
    >>> rows = interp.toy.conversations(4, seed=0, questions=1)
    >>> arguments = {"max_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 5e-4}
    >>> result = tune(vlm, rows, layers=range(2, 6), arguments=arguments)
    >>> result.unchanged, len(result.loss), result.vlm.name
    (True, 2, 'toy:stage1 tuned in layers 2 to 5')

    `data` is an `interp.Data` or what it is made from, with an answer in each row: conversations in LLaVA's format, or columns
    `text` and `answer`. `layers` selects the decoder's, ``()`` for none; `connector`, `vision` (the image tower) and `head` (the
    final norm and the unembedding) are trained beside them. With `lora`, a rank or a `peft.LoraConfig`, the layers get
    adapters, which are merged at the end.

    The loss is the model's own: the mean cross-entropy over the tokens of all answers of a step, the end token behind each among
    them, plus `patch_alignment` times `patch_alignment_loss`, where that is above 0. Rows are cut at `max_length` tokens.

    `arguments` are fields of transformers' `TrainingArguments`, over LLaVA's settings (`interp.tuning.training_arguments`), or
    such an object. Under ``torchrun`` each process takes its share of every step's rows; where the rows of an epoch do not go
    into the processes' batches evenly, its last step repeats some. Trained copies are float32; a model in 16 bits is run in
    mixed precision. Two equal calls on a CPU give equal results bit for bit.

    `out` is a folder for the tuned model, as transformers' `save_pretrained` writes it, with the processor, the result
    (``tune.safetensors``), its figure (``tune.html``) and what was asked for (``tune.json``). A run that was stopped goes on
    with ``resume=True`` from its last whole checkpoint, and ends as if it had never stopped; one that is finished is
    loaded.

    Raises `InputError` or `InputTypeError` before anything runs for parts, data, settings and folders that cannot be used, and
    for a model that is not on this machine or is quantised; `InputError` for a row that cannot be read when its turn comes,
    and for a loss that is not finite, with its step.
    """
    names = trained_names(vlm, layers, connector, vision, head)
    _check_call(patch_alignment, resume)
    folder = WorkFolder(out, resume) if out is not None or resume else None
    # A notebook that only looks at models has gradients switched off.
    with _random_state_of_caller(), torch.inference_mode(False), torch.enable_grad():
        args = training_arguments(arguments, vlm.device, autocast_precision(vlm), folder.steps if folder else None)
        job = _prepared(vlm, data, max_length, patch_alignment)
        torch.manual_seed(args.seed)  # for adapters, which are drawn
        model = tunable_model(vlm, names, lora)
        if job.extra is not None:
            job.extra.watched(model)
        hashes = fingerprints(vlm.model, [name for name, _ in vlm.model.named_parameters()])
        if folder is not None:
            parts = {"layers": vlm.layer_indices(layers), "connector": connector, "vision": vision, "head": head}
            parts |= {"lora": plain_config(lora), "max_length": max_length, "patch_alignment": patch_alignment}
            given = {
                "model": vlm.name,
                "weights": _digest(hashes.items()),
                "rows": len(job.rows),
                "data": job.fingerprint,
            }
            settings = {"processes": args.world_size, "arguments": changed_fields(args)}
            folder.begin(given | parts | settings, writes=args.should_save)
            if folder.finished:
                return folder.load(vlm)
        try:
            trainer = _train(model, args, job, folder)
        except BaseException:
            if folder is not None and args.should_save:
                folder.leave()
            raise
        result = _result(vlm, trainer, names, vlm.layer_indices(layers), hashes, job)
        if folder is not None and args.should_save:
            folder.finish(result, model if lora is not None else None)
        trainer.accelerator.wait_for_everyone()
    return result


@dataclass(frozen=True)
class _Job:
    """Rows to train on, what makes batches of them, and a loss to add; `fingerprint` is that of the rows' texts."""

    rows: TrainingRows
    collator: Collator
    extra: PatchAlignment | None
    fingerprint: str


def _check_call(patch_alignment: Any, resume: Any) -> None:
    if importlib.util.find_spec("accelerate") is None:
        raise InputError('tuning needs the package accelerate: pip install "interp-vlm[tuning]"')
    checked_flag(resume, "resume")
    if (as_number(patch_alignment) is None) or not 0 <= patch_alignment < math.inf:
        raise InputError(f"patch_alignment={shown(patch_alignment)}: expected a number from 0; 0 trains without it")


def _prepared(vlm: VLM, data: Any, max_length: int | None, patch_alignment: float) -> _Job:
    """The rows and their collator; the first row is tried at once."""
    extra = PatchAlignment(vlm, patch_alignment) if patch_alignment else None
    collator = Collator(vlm, max_length, extra)
    rows = training_rows(vlm, data, collator)
    if extra is not None:
        extra.check(rows)
    collator([rows[0]])
    return _Job(rows, collator, extra, _digest((row.id, row.system, row.turns) for row in rows))


def _train(model: Any, args: Any, job: _Job, folder: WorkFolder | None) -> TuningTrainer:
    from interp.tuning.trainer import TuningTrainer

    with progress_bar("tuning", None, "steps", visible=args.process_index == 0) as bar:
        try:
            trainer = TuningTrainer(model, args, job.rows, job.collator, job.extra, bar)
        except (ValueError, TypeError, ImportError, RuntimeError) as error:
            raise InputError(f"arguments cannot be used: {reason_of(error)}") from error
        trainer.run(folder.last() if folder else None)
    broken = next(
        (name for name, each in model.named_parameters() if each.requires_grad and not each.isfinite().all()), None
    )
    if broken is not None:
        raise InputError(f"after {trainer.state.global_step} steps {broken} is not finite: take a lower learning_rate")
    return trainer


def _result(
    vlm: VLM, trainer: TuningTrainer, names: list[str], layers: list[int], hashes: dict[str, str], job: _Job
) -> TuneResult:
    model, args, history = trainer.model, trainer.args, trainer.state.log_history
    tuned = finished(model, vlm)
    trained = {name: each.numel() for name, each in model.named_parameters() if each.requires_grad}
    changed = {name.replace(".base_layer.", ".") for name, _ in model.named_parameters() if ".base_layer." in name}
    frozen = [name for name in hashes if name not in trained and name not in changed]
    cut_off = len({row for entry in history for row in entry.get("cut_off", ())})
    notes = [*training_notes(vlm, names), *_notes(args, cut_off, job.rows.skipped)]
    versions = package_versions() | {
        name: version(name) for name in ("accelerate", "peft") if importlib.util.find_spec(name)
    }
    return TuneResult(
        layers=tuple(layers),
        trained=tuple(trained),
        trained_parameters=sum(trained.values()),
        frozen_parameters=sum(vlm.model.get_parameter(name).numel() for name in hashes if name not in trained),
        hashes_before={name: hashes[name] for name in frozen},
        hashes_after=fingerprints(tuned.model, frozen),
        **record_of(history),
        rows=len(job.rows),
        cut_off=cut_off,
        skipped=job.rows.skipped,
        vlm=tuned,
        provenance=Provenance(
            vlm.name, vlm.revision, job.fingerprint, args.seed, notes=tuple(notes), versions=versions
        ),
    )


def _notes(args: Any, cut_off: int, skipped: int) -> Iterator[str]:
    settings = changed_fields(args, DEFAULTS)
    if settings:
        yield f"settings beside LLaVA's: {', '.join(f'{name}={value}' for name, value in settings.items())}"
    if args.world_size > 1:
        yield f"{args.world_size} processes"
    if cut_off:
        yield f"{cut_off} rows lost a part of their answers to the length limit"
    if skipped:
        yield f"{skipped} rows could not be used"


def _digest(values: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for value in values:
        digest.update(repr(value).encode())
    return digest.hexdigest()


@contextmanager
def _random_state_of_caller() -> Iterator[None]:
    """Training seeds every generator of random numbers there is; afterwards they are where they were."""
    state, numbers, tensors = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        yield
    finally:
        random.setstate(state)
        np.random.set_state(numbers)  # noqa: NPY002
        torch.set_rng_state(tensors)
        if on_gpus:
            torch.cuda.set_rng_state_all(on_gpus)
