"""Small parts in the place of SmolLM2 and the trained tower: random weights, the same classes and the same kind of tokenizer."""

import pytest
import torch

WORDS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")


@pytest.fixture(scope="session")
def small_parts():
    """A Llama of 4 layers with a tied head, its tokenizer (bytes and SmolLM2's special tokens), and a tower of 64 pixels."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({word: index for index, word in enumerate((*WORDS, *letters))}, []))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    begin, end, unknown = WORDS
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=begin, eos_token=end, pad_token=end, unk_token=unknown
    )
    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = LlamaConfig(
        **sizes,
        **ids,
        vocab_size=len(tokenizer),
        num_key_value_heads=2,
        tie_word_embeddings=True,
        initializer_range=0.1,
    )
    sizes |= {"hidden_size": 24, "num_attention_heads": 2, "num_hidden_layers": 2}
    tower = CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=64, patch_size=16))
    return LlamaForCausalLM(config).eval(), tokenizer, tower.eval()


@pytest.fixture(scope="session")
def small(small_parts):
    """These parts put together, with a new connector that is as large as a trained one."""
    from interp.organisms.emoji.emoji_model import assembled

    torch.manual_seed(1)
    connector = torch.nn.Sequential(torch.nn.Linear(24, 48), torch.nn.GELU(), torch.nn.Linear(48, 48)).eval()
    return assembled(*small_parts, connector)
