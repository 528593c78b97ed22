"""A small GGUF file of a language model of Llama's kind, with random weights in eight bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def write_gguf(path: Path, layers: int = 3, width: int = 32, hidden: int = 64) -> Path:
    """Write it: 4 heads, 2 of keys, a vocabulary of 64."""
    import gguf

    heads, keys, vocabulary = 4, 2, 64
    draw = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_vocab_size(vocabulary)
    writer.add_context_length(128)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(hidden)
    writer.add_head_count(heads)
    writer.add_head_count_kv(keys)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e4)

    def matrix(name: str, rows: int, columns: int) -> None:
        weight = draw.standard_normal((rows, columns)).astype(np.float32) / columns**0.5
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(name, gguf.quants.quantize(weight, kind), raw_dtype=kind)

    def norm(name: str) -> None:
        writer.add_tensor(name, np.ones(width, np.float32))

    # Blocks in no order: a file may hold its tensors in any.
    for block in reversed(range(layers)):
        part = f"blk.{block}."
        norm(part + "attn_norm.weight")
        norm(part + "ffn_norm.weight")
        matrix(part + "attn_q.weight", width, width)
        matrix(part + "attn_k.weight", width * keys // heads, width)
        matrix(part + "attn_v.weight", width * keys // heads, width)
        matrix(part + "attn_output.weight", width, width)
        matrix(part + "ffn_gate.weight", hidden, width)
        matrix(part + "ffn_up.weight", hidden, width)
        matrix(part + "ffn_down.weight", width, hidden)
    matrix("token_embd.weight", vocabulary, width)
    matrix("output.weight", vocabulary, width)
    norm("output_norm.weight")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
