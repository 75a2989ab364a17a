"""A checkpoint that writes given tokens, one after the other and round again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def cycle_model(folder: Path, texts: Sequence[str]) -> Path:
    """A model whose greedy output is "!", then `texts` in order, and round again, each text one token.

    Attention and MLP add nothing and the embeddings are one-hot, so the head reads the last token
    and names the next one. The untrained masks always guess token 0, "!": once a round a draft is
    accepted, and corrected elsewhere.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(list(texts))
    size = -(-(len(alphabet) + len(texts) + 8) // 40) * 40  # five heads of an even size
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=size,
            hidden_size=size,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=5,
            num_key_value_heads=5,
            max_position_embeddings=1024,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    cycle = [0, *(tokenizer.token_to_id(text) for text in texts)]
    follows = dict(zip(cycle, cycle[1:] + cycle[:1], strict=True))
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.eye(size))
        model.lm_head.weight.zero_()
        for token in range(size):
            model.lm_head.weight[follows.get(token, 0), token] = 1.0
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return folder
