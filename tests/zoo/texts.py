"""Architectures of language models alone: a spread of how they differ, and some that `interp` refuses.

Positions are learned (gpt2, opt), rotary, a bias (bloom), or of a recurrence (mamba). Attention and MLP run one after the
other or side by side (gpt_neox, phi, falcon, cohere). q, k and v are separate, fused (gpt2, gpt_neox, phi3, falcon, bloom),
or latent (deepseek_v3). Norms stand before a part, behind it (olmo2), on both sides (gemma2) or have no weights (olmo).
"""

from __future__ import annotations

from typing import Any

from zoo.entry import Entry

_GPT2 = {"n_embd": 64, "n_layer": 4, "n_head": 4, "n_positions": 512}
_EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2}
_LATENT = {
    "num_key_value_heads": 4,
    "qk_rope_head_dim": 8,
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "head_dim": 8,
}

ENTRIES: dict[str, Entry] = {
    "bloom": Entry({"n_layer": 4, "n_head": 4}),
    "cohere": Entry(),
    "deepseek_v3": Entry(_LATENT),
    "falcon": Entry({"num_kv_heads": 4, "ffn_hidden_size": 96}),
    "gemma2": Entry(),
    "gemma3_text": Entry(),
    "gpt2": Entry(_GPT2),
    "gpt_neox": Entry(),
    "gpt_oss": Entry(),
    "llama": Entry(),
    "mamba": Entry({"state_size": 8, "intermediate_size": 128}),
    "mistral": Entry(),
    "mixtral": Entry(),
    "olmo": Entry(),
    "olmo2": Entry(),
    "opt": Entry(),
    "phi": Entry(),
    "phi3": Entry({"original_max_position_embeddings": 512}),
    "qwen2": Entry(),
    "qwen3": Entry(),
    "qwen3_next": Entry(_EXPERTS),
    # Refused.
    "bert": Entry(),
    "openai-gpt": Entry(_GPT2),
    "recurrent_gemma": Entry(),
    "roberta-prelayernorm": Entry(),
}
