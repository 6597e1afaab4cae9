"""Any architecture's config made tiny: its own defaults with every size replaced by a small one.

Nothing here knows an architecture. Sizes go by the name of their field, lists with one entry a layer keep a layer of
each kind, and token ids move into the small vocabulary, equal ones to equal ones. Where the result does not fit
together, the architecture's entry says what to change.
"""

from __future__ import annotations

from typing import Any

VOCABULARY = 160
LAYERS = 4
ORDINARY = 32  # ids from 1 to here are text; the ids that mean something are moved to the end of the vocabulary
_WIDTH, _HEADS, _KEY_HEADS, _HEAD, _INNER = 64, 4, 2, 16, 96

_FIELDS: tuple[tuple[int, str], ...] = (
    (VOCABULARY, "vocab_size vocab_size_per_layer_input unpadded_vocab_size"),
    (LAYERS, "num_hidden_layers n_layers layers num_layers"),
    (
        _WIDTH,
        """hidden_size d_model text_hidden_size out_hidden_size embed_dim output_dim projector_output_dim
        image_token_embed_dim word_embed_proj_dim image_text_hidden_size projector_hidden_size projection_dim
        vision_output_dim projector_input_dim encoder_hidden_size vision_hidden_size merged_hidden_size
        projection_hidden_size num_position_embeddings codebook_size num_embeddings""",
    ),
    (
        _HEADS,
        """num_attention_heads num_heads attention_heads swa_num_attention_heads encoder_attention_heads
        num_sliding_attention_heads resampler_n_heads linear_num_value_heads linear_num_heads mamba_num_heads
        n_routed_experts num_experts num_local_experts moe_num_experts index_n_heads patch_size""",
    ),
    (
        _KEY_HEADS,
        """num_key_value_heads swa_num_key_value_heads linear_num_key_heads num_experts_per_tok moe_topk moe_k
        index_topk_blocks depth encoder_layers resampler_depth""",
    ),
    (
        _HEAD,
        """head_dim swa_head_dim linear_key_head_dim linear_value_head_dim linear_head_dim mamba_head_dim
        resampler_head_dim v_head_dim qk_nope_head_dim index_head_dim ssm_state_size kv_lora_rank q_lora_rank
        image_size max_img_size max_image_size scale""",
    ),
    (
        _INNER,
        """intermediate_size ffn_dim moe_intermediate_size mlp_dim encoder_ffn_dim intermediate_size_mlp
        alignment_intermediate_size shared_expert_intermediate_size shared_intermediate_size dense_intermediate_size
        share_expert_dim moe_hidden_size moe_shared_expert_intermediate_size projection_intermediate_size
        projection_hidden_dim shared_experts_intermediate_size""",
    ),
    (1, "n_group topk_group n_shared_experts moe_num_shared_experts first_k_dense_replace"),
    (
        8,
        """qk_rope_head_dim base_channels output_channels downsample_hidden_size latent_channels sliding_window
        sliding_window_size index_topk hidden_size_per_layer_input""",
    ),
    (24, "qk_head_dim"),
    (512, "max_position_embeddings"),
)
_SMALL = {name: value for value, names in _FIELDS for name in names.split()}
_SMALL_TOWER = {**_SMALL, "num_hidden_layers": 2, "num_key_value_heads": _HEADS}
_TOWERS = ("vision", "vq", "qformer", "perceiver", "audio", "high_res", "adapter", "encoder_config")
_IDS = ("token_id", "token_index", "_id", "_token_ids")


def shrink(config_class: Any, changes: dict[str, Any]) -> Any:
    """The tiny config: defaults made small, then `changes` (nested like the config) merged in."""
    small = _small(config_class().to_dict(), _SMALL, {})
    small.pop("transformers_version", None)
    return config_class.from_dict(merge(small, changes))


def _small(fields: dict[Any, Any], sizes: dict[str, Any], ids: dict[int, int]) -> dict[Any, Any]:
    depth = fields.get("num_hidden_layers")
    kept = _layers_of_each_kind(fields, depth, sizes["num_hidden_layers"]) if isinstance(depth, int) else []
    small: dict[Any, Any] = {}
    for name, value in fields.items():
        if name in ("id2label", "label2id"):
            continue
        if name == "per_layer_config":
            special = {int(layer): _small(changed, sizes, ids) for layer, changed in value.items()}
            small[name] = {place: special[layer] for place, layer in enumerate(kept) if layer in special}
            continue
        if isinstance(value, dict) and not str(name).startswith("rope_"):
            tower = any(word in str(name) for word in _TOWERS)
            small[name] = _small(value, _SMALL_TOWER if tower else sizes, ids)
        elif isinstance(value, list | tuple) and kept and len(value) == depth:
            small[name] = [value[layer] for layer in kept]
        elif isinstance(value, int) and not isinstance(value, bool) and name in sizes:
            small[name] = sizes[name]
        elif isinstance(name, str) and name.endswith(_IDS):
            small[name] = _moved(value, ids)
        else:
            small[name] = value
    return small


def _layers_of_each_kind(fields: dict[Any, Any], depth: int, wanted: int) -> list[int]:
    """Which layers stay: the first of every kind that the lists of one entry a layer tell apart, then the first ones."""
    lists = [value for value in fields.values() if isinstance(value, list | tuple) and len(value) == depth]
    kinds = [repr(entries) for entries in zip(*lists, strict=True)]
    firsts = [layer for layer, kind in enumerate(kinds) if kinds.index(kind) == layer]
    others = [layer for layer in range(len(kinds)) if layer not in firsts]
    return sorted((firsts + others)[:wanted])


def _moved(value: Any, ids: dict[int, int]) -> Any:
    if isinstance(value, list | tuple):
        return [_moved(item, ids) for item in value]
    if isinstance(value, bool) or not isinstance(value, int) or 0 <= value < 3:
        return value
    return ids.setdefault(value, VOCABULARY - 1 - len(ids))


def merge(fields: dict[Any, Any], changes: dict[Any, Any]) -> dict[Any, Any]:
    """Nested fields with the changes put in, neither of both changed."""
    merged = dict(fields)
    for name, value in changes.items():
        nested = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = merge(merged[name], value) if nested else value
    return merged
