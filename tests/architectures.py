"""Other architectures of transformers, tiny and random: name -> what makes one, and the options that it needs."""

import torch
from models import SMALL, ids, rows

S = {**SMALL, "pad_token_id": 0}
GROUPED = {**S, "num_key_value_heads": 2}
V = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32,
    "patch_size": 8, "num_labels": 5,
}  # fmt: skip
AUDIO = {
    "vocab_size": 32, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "conv_dim": [8, 8], "conv_kernel": [10, 3], "conv_stride": [5, 2], "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2,
}  # fmt: skip
BOTH = {
    "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
}  # fmt: skip
IMAGE = (2, 3, 32, 32)
BACKBONE = {"embedding_size": 8, "hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1], "layer_type": "basic"}


def text(model, config, **values):
    return lambda: (*built(model, config, **values), (ids(),), {})


def seq2seq(model, config, **values):
    return lambda: (*built(model, config, **values), (), {"input_ids": ids(), "decoder_input_ids": ids()})


def image(model, config, **values):
    return lambda: (*built(model, config, **values), (rows(*IMAGE),), {})


def audio(model, config, **values):
    return lambda: (*built(model, config, **values), (rows(2, 400),), {})


def built(model, config, **values):
    import transformers

    torch.manual_seed(0)
    made = getattr(transformers, config)(**values)
    return (getattr(transformers, model)(made),)


def detr():
    from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

    config = DetrConfig(
        use_timm_backbone=False, backbone=None, backbone_config=ResNetConfig(**BACKBONE, out_features=["stage4"]),
        d_model=32, num_queries=5, **{**BOTH, "encoder_layers": 1, "decoder_layers": 1},
    )  # fmt: skip
    return DetrForObjectDetection(config), (rows(*IMAGE),), {}


def clip():
    from transformers import CLIPConfig, CLIPModel

    words = {**S, "max_position_embeddings": 16, "projection_dim": 16, "eos_token_id": 2}
    config = CLIPConfig(text_config=words, vision_config={**V, "projection_dim": 16}, projection_dim=16)
    return CLIPModel(config), (ids(), rows(*IMAGE)), {}


UNUSED = "unused"
ARCHITECTURES = {
    "gemma2": (text("Gemma2ForCausalLM", "Gemma2Config", **GROUPED, head_dim=8), {}),
    "gemma3": (text("Gemma3ForCausalLM", "Gemma3TextConfig", **GROUPED, head_dim=8), {}),
    "phi": (text("PhiForCausalLM", "PhiConfig", **S), {}),
    "phi3": (text("Phi3ForCausalLM", "Phi3Config", **GROUPED), {}),
    "gpt_neox": (text("GPTNeoXForCausalLM", "GPTNeoXConfig", **S), {}),
    "gptj": (text("GPTJForCausalLM", "GPTJConfig", vocab_size=65, n_positions=32, n_embd=32, n_layer=2, n_head=4,
                  rotary_dim=4), {}),
    "bloom": (text("BloomForCausalLM", "BloomConfig", vocab_size=65, hidden_size=32, n_layer=2, n_head=4), {}),
    "falcon": (text("FalconForCausalLM", "FalconConfig", **S, new_decoder_architecture=True, num_kv_heads=2), {}),
    "falcon, one kv head": (text("FalconForCausalLM", "FalconConfig", **S, multi_query=True), {}),
    "opt": (text("OPTForCausalLM", "OPTConfig", vocab_size=65, hidden_size=32, ffn_dim=64, num_hidden_layers=2,
                 num_attention_heads=4, max_position_embeddings=32, word_embed_proj_dim=32), {}),
    "qwen2": (text("Qwen2ForCausalLM", "Qwen2Config", **GROUPED), {}),
    "olmo2": (text("Olmo2ForCausalLM", "Olmo2Config", **S), {}),
    "qwen3_moe": (text("Qwen3MoeForCausalLM", "Qwen3MoeConfig", **GROUPED, num_experts=4, num_experts_per_tok=2,
                       moe_intermediate_size=16, head_dim=8), {}),
    "deepseek_v3": (text("DeepseekV3ForCausalLM", "DeepseekV3Config", **S, moe_intermediate_size=16, n_routed_experts=4,
                         num_experts_per_tok=2, n_group=1, topk_group=1, q_lora_rank=16, kv_lora_rank=8,
                         qk_rope_head_dim=4, qk_nope_head_dim=8, v_head_dim=8, first_k_dense_replace=1), {}),
    "gpt_oss": (text("GptOssForCausalLM", "GptOssConfig", **GROUPED, head_dim=8, num_local_experts=4,
                     num_experts_per_tok=2), {}),
    "llama4": (text("Llama4ForCausalLM", "Llama4TextConfig", **GROUPED, intermediate_size_mlp=64, num_local_experts=2,
                    head_dim=8), {}),
    "mamba2": (text("Mamba2ForCausalLM", "Mamba2Config", vocab_size=65, hidden_size=32, num_heads=8, head_dim=8,
                    state_size=8, num_hidden_layers=2, n_groups=1, chunk_size=4), {}),
    "rwkv": (text("RwkvForCausalLM", "RwkvConfig", vocab_size=65, hidden_size=32, num_hidden_layers=2,
                  attention_hidden_size=32, intermediate_size=64), {}),
    "recurrent_gemma": (text("RecurrentGemmaForCausalLM", "RecurrentGemmaConfig", **{**S, "num_hidden_layers": 3},
                             lru_width=32, num_key_value_heads=1), {}),
    "jamba": (text("JambaForCausalLM", "JambaConfig", **GROUPED, attn_layer_period=2, attn_layer_offset=1,
                   expert_layer_period=2, expert_layer_offset=1, num_experts=2, mamba_d_state=4, mamba_dt_rank=3,
                   use_mamba_kernels=False), {}),
    "modernbert": (text("ModernBertForMaskedLM", "ModernBertConfig", **S), {}),
    "roberta": (text("RobertaForMaskedLM", "RobertaConfig", **S), {}),
    "deberta_v2": (text("DebertaV2ForMaskedLM", "DebertaV2Config", **S, relative_attention=True,
                        pos_att_type=["p2c", "c2p"], max_relative_positions=16, position_buckets=8), {}),
    "albert": (text("AlbertForMaskedLM", "AlbertConfig", **S, embedding_size=16), {}),
    "electra": (text("ElectraForPreTraining", "ElectraConfig", **S, embedding_size=16), {}),
    "xlnet": (text("XLNetLMHeadModel", "XLNetConfig", vocab_size=65, d_model=32, n_layer=2, n_head=4, d_inner=64),
              {"roles": {"transformer.mask_emb": UNUSED, "*.r_s_bias": UNUSED, "*.seg_embed": UNUSED}}),
    "fnet": (text("FNetForMaskedLM", "FNetConfig", **S), {"roles": {"fnet.pooler": UNUSED}}),
    "funnel": (text("FunnelForMaskedLM", "FunnelConfig", vocab_size=65, block_sizes=[1, 1], d_model=32, n_head=4, d_head=8,
                    d_inner=64), {}),
    "perceiver": (text("PerceiverForMaskedLM", "PerceiverConfig", num_latents=8, d_latents=32, d_model=32, num_blocks=1,
                       num_self_attends_per_block=1, num_self_attention_heads=4, num_cross_attention_heads=4,
                       vocab_size=65, max_position_embeddings=12, qk_channels=32, v_channels=32), {}),
    "bart": (seq2seq("BartForConditionalGeneration", "BartConfig", vocab_size=65, d_model=32, **BOTH,
                     max_position_embeddings=32), {}),
    "longt5": (seq2seq("LongT5ForConditionalGeneration", "LongT5Config", vocab_size=65, d_model=32, d_kv=8, d_ff=64,
                       num_layers=1, num_heads=4, local_radius=4), {}),
    "convnext": (image("ConvNextForImageClassification", "ConvNextConfig", hidden_sizes=[8, 16, 32, 64],
                       depths=[1, 1, 2, 1], num_labels=5), {}),
    "swin": (image("SwinForImageClassification", "SwinConfig", image_size=32, patch_size=4, embed_dim=8, depths=[2, 2],
                   num_heads=[2, 4], window_size=4, num_labels=5), {}),
    "resnet": (image("ResNetForImageClassification", "ResNetConfig", embedding_size=8, hidden_sizes=[8, 16],
                     depths=[1, 1], layer_type="basic", num_labels=5), {}),
    "deit": (image("DeiTForImageClassification", "DeiTConfig", **V), {}),
    "dinov2": (image("Dinov2ForImageClassification", "Dinov2Config", **V), {"roles": {"*.mask_token": UNUSED}}),
    "beit": (image("BeitForImageClassification", "BeitConfig", **V, use_relative_position_bias=True,
                   use_absolute_position_embeddings=True), {}),
    "efficientnet": (image("EfficientNetForImageClassification", "EfficientNetConfig", width_coefficient=0.25,
                           depth_coefficient=0.2, num_labels=5, hidden_dim=320), {}),
    "mobilevit": (image("MobileViTForImageClassification", "MobileViTConfig", hidden_sizes=[16, 24, 32],
                        neck_hidden_sizes=[8, 8, 16, 16, 24, 32, 64], image_size=32, num_labels=5), {}),
    "segformer": (image("SegformerForSemanticSegmentation", "SegformerConfig", hidden_sizes=[8, 16, 16, 32],
                        depths=[1, 1, 1, 1], num_attention_heads=[1, 2, 2, 4], decoder_hidden_size=16, num_labels=5), {}),
    "clip": (clip, {"output": "logits_per_image"}),
    "detr": (detr, {"output": ("logits", "pred_boxes")}),
    "wav2vec2": (audio("Wav2Vec2ForCTC", "Wav2Vec2Config", **AUDIO), {"roles": {"*.masked_spec_embed": UNUSED}}),
    "hubert": (audio("HubertForCTC", "HubertConfig", **AUDIO), {"roles": {"*.masked_spec_embed": UNUSED}}),
}  # fmt: skip
