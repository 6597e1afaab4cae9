"""Shared by all tests: shape checks of the public annotations, one thread a process, and the models, built once."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # no test asks the hub; without this, each unknown name waits for it in vain

from jaxtyping import config, install_import_hook

import typechecks  # noqa: F401  beartype must be imported before nnsight, which puts an attribute on every object

# Active under pytest alone, never in the library itself; must come before the first import of what is checked.
install_import_hook(
    (
        "interp.geometry",
        "interp.statistics",
        "interp.probes",
        "interp.lens",
        "interp.readouts",
        "interp.words",
        "interp.patching",
        "interp.data",
        "interp.activations",
        "interp.tuning",
        "interp.organisms",
    ),
    "typechecks.check",
)

import pytest  # noqa: E402
import torch  # noqa: E402

# Tiny models are several times faster on one thread, and the suite runs in two processes.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    """Skip what needs a GPU where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture
def unchecked():
    """No shape checks: what this package itself says of an argument of a wrong type is to be seen, as its users see it."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def toy():
    """The trained toy, on the CPU so that numbers do not depend on the machine."""
    import interp

    return interp.load("toy", device="cpu")


@pytest.fixture(scope="session")
def stage1():
    import interp

    return interp.load("toy:stage1", device="cpu")


@pytest.fixture(scope="session")
def bare(stage1):
    """The language model that the toy was built on, alone: a class of transformers without a tower, and a tokenizer."""
    from transformers import LlamaForCausalLM

    import interp

    model = LlamaForCausalLM(stage1.model.config.get_text_config()).eval()
    model.model.load_state_dict(stage1.model.model.language_model.state_dict())
    model.lm_head.load_state_dict(stage1.model.lm_head.state_dict())
    return interp.load(model=model, processor=stage1.tokenizer, device="cpu")


@pytest.fixture(scope="session")
def remote_toy():
    """The toy through nnsight's simulation of NDIF: every trace is serialised and run as if on a server."""
    import interp

    return interp.load("toy", device="cpu", remote="local")


@pytest.fixture(scope="session")
def few(toy):
    """Three scenes."""
    import interp

    return interp.toy.scenes(3, seed=11)


@pytest.fixture(scope="session")
def mixed(toy, few):
    """A batch whose rows differ in length and kind: image and question, text alone, image and a longer question."""
    return toy.prepare(
        texts=[
            "<image> what colour is the 3 ?",
            "a red 3 at top . where is the 3 ?",
            "<image> how many digits are there ? two where is the 7 ?",
        ],
        images=[few[0].image, None, few[1].image],
    )


@pytest.fixture(scope="session")
def tiny():
    """An untrained LLaVA that is unlike the toy where it can be: tied embeddings, grouped keys, a grid of 4x4 patches."""
    from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration, MistralConfig

    torch.manual_seed(3)
    vision = CLIPVisionConfig(
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        projection_dim=24,
    )
    text = MistralConfig(
        vocab_size=90,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
        tie_word_embeddings=True,
    )
    config = LlavaConfig(
        text_config=text, vision_config=vision, image_token_id=7, image_seq_length=16, tie_word_embeddings=True
    )
    return LlavaForConditionalGeneration(config).eval()
