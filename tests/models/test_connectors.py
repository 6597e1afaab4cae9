"""Connectors from files and modules: LLaVA's own modules are the oracle, and what is no connector is one line."""

import os
import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from interp.errors import InputError, InputTypeError
from interp.models.connectors import connector_weights

D_VISION, D_MODEL = 6, 10


def mlp(activation=None, bias=True):
    """LLaVA's mlp2x_gelu, as its training script builds it."""
    torch.manual_seed(0)
    first, second = nn.Linear(D_VISION, D_MODEL, bias), nn.Linear(D_MODEL, D_MODEL, bias)
    return nn.Sequential(first, activation or nn.GELU(), second).eval()


def linear(bias=True):
    """LLaVA's linear connector."""
    torch.manual_seed(0)
    return nn.Linear(D_VISION, D_MODEL, bias).eval()


def named(module, prefix="model.mm_projector."):
    return {f"{prefix}{key}": tensor for key, tensor in module.state_dict().items()}


def written(folder, tensors, name="mm_projector.bin", **options):
    path = folder / name
    save_file(tensors, path) if name.endswith("safetensors") else torch.save(tensors, path, **options)
    return path


def in_transformers(weights, dtype=torch.float32):
    """transformers' own connector with these weights."""
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(hidden_size=D_VISION, num_attention_heads=2),
        text_config=LlamaConfig(hidden_size=D_MODEL, num_attention_heads=2, head_dim=4),
        projector_hidden_act=weights.activation,
        multimodal_projector_bias=weights.has_bias,
    )
    module = LlavaMultiModalProjector(config).to(dtype)
    module.load_state_dict(weights.tensors)
    return module


def computed(source, dtype=torch.float32, **options):
    """What the connector makes of some states, of many sizes and with zeros among them."""
    weights = connector_weights(source, D_VISION, D_MODEL, **options)
    with torch.no_grad():
        return in_transformers(weights, dtype)(states(dtype))


def states(dtype=torch.float32):
    drawn = torch.randn(40, D_VISION, generator=torch.Generator().manual_seed(1)) * torch.logspace(-3, 3, 40)[:, None]
    drawn[0] = 0
    return drawn.to(dtype)


@pytest.mark.parametrize("build", [mlp, linear])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_file_computes_what_llavas_module_does(tmp_path, build, bias, dtype):
    """Bit for bit: the linear one too, whose second map is the identity."""
    module = build(bias=bias).to(dtype)
    with torch.no_grad():
        wanted = module(states(dtype))
    assert torch.equal(computed(written(tmp_path, named(module)), dtype), wanted)


@pytest.mark.parametrize("build", [mlp, linear])
@pytest.mark.parametrize(
    ("name", "prefix", "options"),
    [
        ("mm_projector.bin", "model.mm_projector.", {}),
        ("mm_projector.bin", "mm_projector.", {"_use_new_zipfile_serialization": False}),
        ("connector.pt", "module.model.mm_projector.", {}),
        ("connector.pth", "", {}),
        ("mm_projector.safetensors", "model.mm_projector.", {}),
        ("any.safetensors", "base_model.model.model.mm_projector.", {}),
    ],
)
def test_files_of_any_writer_are_the_same(tmp_path, build, name, prefix, options):
    module = build()
    with torch.no_grad():
        assert torch.equal(computed(written(tmp_path, named(module, prefix), name, **options)), module(states()))


def test_the_keys_are_those_that_transformers_converts_them_to(tmp_path):
    """LLaVA's published files: `model.mm_projector.0.weight` becomes `multi_modal_projector.linear_1.weight`."""
    module = mlp()
    weights = connector_weights(written(tmp_path, named(module)), D_VISION, D_MODEL)
    pairs = {
        "linear_1.weight": "0.weight",
        "linear_1.bias": "0.bias",
        "linear_2.weight": "2.weight",
        "linear_2.bias": "2.bias",
    }
    assert {*weights.tensors} == {*pairs}
    assert all(torch.equal(weights.tensors[own], module.state_dict()[key]) for own, key in pairs.items())
    assert weights.activation == "gelu"


def test_transformers_own_keys(tmp_path):
    own = in_transformers(connector_weights(mlp(), D_VISION, D_MODEL))
    for source in (own, written(tmp_path, named(own, "model.multi_modal_projector."))):
        assert torch.equal(computed(source), own(states()))


def test_a_folder_with_llavas_file(tmp_path):
    written(tmp_path, named(linear()))
    assert torch.equal(computed(tmp_path), linear()(states()))
    written(tmp_path, named(linear()), "mm_projector.safetensors")
    with pytest.raises(InputError, match="holds 2 files"):
        computed(tmp_path)


@pytest.mark.parametrize(
    ("activation", "name"),
    [
        (nn.GELU(), "gelu"),
        (nn.GELU(approximate="tanh"), "gelu_pytorch_tanh"),
        (nn.ReLU(), "relu"),
        (nn.SiLU(), "silu"),
        (nn.Tanh(), "tanh"),
        (nn.Identity(), "linear"),
    ],
)
def test_the_activation_of_a_module_is_read_off_what_it_computes(activation, name):
    module = mlp(activation)
    assert connector_weights(module, D_VISION, D_MODEL).activation == name
    torch.testing.assert_close(computed(module), module(states()), rtol=1e-5, atol=1e-5)


def test_a_new_one_is_drawn_from_its_seed_as_torch_draws():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    new = connector_weights(None, D_VISION, D_MODEL, seed=0)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(new.tensors[f"linear_{n + 1}.weight"], mlp()[2 * n].weight) for n in (0, 1))
    other = connector_weights(None, D_VISION, D_MODEL, seed=1)
    assert not torch.equal(new.tensors["linear_1.weight"], other.tensors["linear_1.weight"])


class Harmful:
    """Unpickled as usual it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}])
def test_a_pickle_with_objects_is_refused_and_nothing_of_it_runs(tmp_path, options):
    path = written(tmp_path, named(mlp()) | {"other": Harmful(tmp_path / "made")}, **options)
    with pytest.raises(InputError, match=r"a pickle that names posix\.mkdir") as error:
        computed(path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "made").exists()


def bytes_in(folder, content):
    (folder / "mm_projector.bin").write_bytes(content)
    return folder / "mm_projector.bin"


def changed(folder, change, build=mlp):
    tensors = named(build())
    change(tensors)
    return written(folder, tensors)


KEY = "model.mm_projector."
ODD = {
    "no such file": (lambda folder: folder / "nothing.bin", "there is no such file"),
    "no repository": (lambda folder: "nobody/nothing", "the hub gives no mm_projector.bin"),
    "a folder without one": (lambda folder: folder, "holds 0 files mm_projector.*"),
    "an empty file": (lambda folder: bytes_in(folder, b""), "is empty"),
    "a text": (lambda folder: bytes_in(folder, b"hello, no tensors here"), "no file of tensors that torch can read"),
    "a pickle without tensors": (lambda folder: bytes_in(folder, pickle.dumps(os.mkdir)), "no file of tensors"),
    "half a file": (
        lambda folder: bytes_in(folder, written(folder, named(mlp()), "whole.bin").read_bytes()[:900]),
        "no file of tensors",
    ),
    "half a safetensors file": (
        lambda folder: (bytes_in(folder, b"half of it")).rename(folder / "a.safetensors"),
        "no whole safetensors file",
    ),
    "a list": (lambda folder: written(folder, [torch.zeros(2)]), r"holds \[tensor"),
    "one tensor": (lambda folder: written(folder, torch.zeros(2, 2)), "holds Tensor of shape"),
    "tensors one level down": (lambda folder: written(folder, {"model": named(mlp())}), "expected a dict of tensors"),
    "a number among them": (
        lambda folder: changed(folder, lambda all: all.update(epoch=3)),
        "holds 3: expected a dict",
    ),
    "a number for a name": (lambda folder: written(folder, {0: torch.zeros(2)}), "expected a dict of tensors by name"),
    "nothing in it": (lambda folder: written(folder, None), "holds None: expected a dict"),
    "a sparse weight": (
        lambda folder: changed(folder, lambda all: all.update({f"{KEY}2.weight": torch.eye(D_MODEL).to_sparse()})),
        "linear_2.weight in torch.float32, torch.sparse_coo: expected dense",
    ),
    "too long a name": (lambda folder: "x" * 5000, "there is no such file"),
    "no key": (lambda folder: written(folder, {}), r"has the keys \[\]"),
    "other keys": (lambda folder: written(folder, {"a": torch.zeros(2)}), r"has the keys \['a'\]"),
    "a missing key": (lambda folder: changed(folder, lambda all: all.pop(f"{KEY}2.weight")), "lacks 2.weight"),
    "one bias of two": (lambda folder: changed(folder, lambda all: all.pop(f"{KEY}0.bias")), "lacks 0.bias"),
    "a linear one without its weight": (
        lambda folder: changed(folder, lambda all: all.pop(f"{KEY}weight"), linear),
        "lacks weight",
    ),
    "a foreign key": (
        lambda folder: changed(folder, lambda all: all.update({"model.embed_tokens.weight": torch.zeros(2, 2)})),
        "1 foreign keys, such as 'model.embed_tokens.weight'",
    ),
    "two connectors": (
        lambda folder: changed(folder, lambda all: all.update(named(mlp(), "mm_projector."))),
        "has the keys",
    ),
    "three maps": (
        lambda folder: changed(folder, lambda all: all.update(named(linear(), f"{KEY}4."))),
        "an MLP of 3 linear maps: expected 2",
    ),
    "another width of the tower": (
        lambda folder: changed(folder, lambda all: all.update({f"{KEY}0.weight": torch.zeros(10, 7)})),
        r"linear_1.weight of shape \(10, 7\): expected \(10, 6\)",
    ),
    "another width of the stream": (
        lambda folder: written(folder, named(nn.Linear(D_VISION, 12))),
        r"linear_1.weight of shape \(12, 6\): expected \(10, 6\)",
    ),
    "weights that were never gathered": (
        lambda folder: changed(folder, lambda all: all.update({f"{KEY}2.weight": torch.zeros(0)})),
        r"of shape \(0,\): expected \(10, 10\)",
    ),
    "whole numbers": (
        lambda folder: changed(folder, lambda all: all.update({f"{KEY}2.bias": torch.zeros(10, dtype=torch.int8)})),
        "linear_2.bias in torch.int8, torch.strided: expected dense floating-point numbers",
    ),
    "not finite": (
        lambda folder: changed(folder, lambda all: all.update({f"{KEY}2.bias": torch.full((10,), torch.nan)})),
        "linear_2.bias that are not finite",
    ),
    "a norm behind": (lambda folder: nn.Sequential(*mlp(), nn.LayerNorm(D_MODEL)), "2 foreign keys, such as '3.bias'"),
    "a norm without weights": (
        lambda folder: nn.Sequential(*mlp(), nn.LayerNorm(D_MODEL, elementwise_affine=False)),
        "not two linear maps with an activation between",
    ),
    "a module that fails": (
        lambda folder: nn.ModuleDict({"linear_1": linear(), "linear_2": nn.Linear(D_MODEL, D_MODEL)}),
        "fails on states",
    ),
    "a module without weights": (lambda folder: linear().to("meta"), "no weights here"),
}


@pytest.mark.parametrize("name", ODD)
def test_what_is_no_connector_is_one_line(tmp_path, name):
    make, message = ODD[name]
    source = make(tmp_path)
    with pytest.raises(InputError, match=message) as error:
        connector_weights(source, D_VISION, D_MODEL)
    assert "\n" not in str(error.value)
    assert str(tmp_path.parent) not in str(error.value) or name == "no such file"
    assert len(str(error.value)) < 400


def test_neither_file_nor_module():
    with pytest.raises(
        InputTypeError, match="connector=3: expected a file of tensors, a module, tensors by name, or None"
    ):
        connector_weights(3, D_VISION, D_MODEL)
