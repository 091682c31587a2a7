"""How small each size of a configuration can be."""

from typing import Any

WORDS, CONTEXT = 259, 256
SMALL: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), WORDS),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), CONTEXT),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "embedding_size", "word_embed_proj_dim", "dim_model"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "n_kv_heads"), 2),
    **dict.fromkeys(("head_dim", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "rotary_dim", "d_kv"), 8),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "decoder_ffn_dim", "n_inner", "d_inner", "d_ff", "dim_ff"), 64),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size"), 16),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts"), 2),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "first_k_dense_replace"), 1),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "o_lora_rank"), 16),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads"), 2),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 8),
    **dict.fromkeys(("mamba_d_state", "state_size", "mamba_d_head", "mamba_head_dim", "ssm_state_size"), 8),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads"), 8),
    **dict.fromkeys(("mamba_n_groups", "n_groups", "mamba_ngroups"), 1),
    **dict.fromkeys(("mamba_chunk_size", "chunk_size"), 8),
    **dict.fromkeys(("index_n_heads",), 2),
    **dict.fromkeys(("index_head_dim", "hidden_size_per_layer_input"), 8),
    **dict.fromkeys(("index_topk",), 64),
    **dict.fromkeys(("sliding_window", "window_size", "attention_chunk_size"), 6),
    "image_size": 28, "patch_size": 14, "bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258,
    "decoder_start_token_id": 256,
    "use_mamba_kernels": False, "is_decoder": True, "type_vocab_size": 2, "attention_types": None,
}  # fmt: skip
# What some architectures want beside.
OWN: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "bert-generation": {"bos_token_id": 256},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_d_head": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    **{
        kind: {"pad_token_id": 1, "max_position_embeddings": CONTEXT + 2}
        for kind in ("roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "camembert", "data2vec-text")
    },
    "deepseek_v2": {"topk_method": "greedy", "num_experts_per_tok": 2},
    "dots1": {"n_shared_experts": 1, "n_routed_experts": 4, "num_experts_per_tok": 2},
    "gemma3n_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "activation_sparsity_pattern": [0.95, 0.0, 0.0, 0.0],
        "laurel_rank": 8,
    },
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "kimi_linear": {"num_experts_per_token": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "ministral": {"head_dim": 8},
    "nemotron": {"num_key_value_heads": 2},
    "zaya": {"num_experts_per_tok": 1},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2},
    "lfm2": {"layer_types": ["conv", "full_attention"], "full_attn_idxs": [1]},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "xglm": {"max_position_embeddings": CONTEXT + 8},
    "xmod": {
        "languages": ["en"],
        "default_language": "en",
        "pad_token_id": 1,
        "max_position_embeddings": CONTEXT + 2,
    },
}


def sizes(kind: str, config: dict[str, Any]) -> dict[str, Any]:
    """Return the sizes of a tiny configuration of that kind: of those that its own has, the small ones."""
    found = {name: value for name, value in SMALL.items() if config.get(name) is not None and value is not None}
    if kinds := config.get("layer_types"):
        # One layer of each kind, two at least.
        each = list(dict.fromkeys(kinds))
        found["layer_types"] = each if len(each) > 1 else each * 2
        found["num_hidden_layers"] = len(found["layer_types"])
    if config.get("kv_lora_rank") is not None:  # keys and values of all heads come from one state
        found["num_key_value_heads"] = found["num_attention_heads"]
    return found | OWN.get(kind, {})
