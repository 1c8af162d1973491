"""What a person says that every weight of the models in `models` is: written by hand from their source."""

import models
from models import SMALL

D, F, V = SMALL["hidden_size"], SMALL["intermediate_size"], SMALL["vocab_size"]


def linear(out, inside, role="linear"):
    return role, "RMSToRMS", (out, inside)


def table(rows, width, role="embedding"):
    return role, "L1ToRMS", (rows, width)


def bias(n):
    return "bias", "RMS", (n,)


def gain(n):
    return "gain", "Linf", (n,)


def conv(*shape):
    return "convolution", "Conv", shape


def affine(name, n):
    """A normalisation with gain and bias."""
    return {f"{name}.weight": gain(n), f"{name}.bias": bias(n)}


def dense(name, out, inside, role="linear"):
    return {f"{name}.weight": linear(out, inside, role), f"{name}.bias": bias(out)}


def blocks(name, letters, value):
    return {f"{name}[{letter}]": value for letter in letters}


def llama(kv, extra=()):
    layer = "model.layers.*"
    return {
        "model.embed_tokens.weight": table(V, D),
        f"{layer}.self_attn.q_proj.weight": linear(D, D),
        f"{layer}.self_attn.k_proj.weight": linear(kv, D),
        f"{layer}.self_attn.v_proj.weight": linear(kv, D),
        f"{layer}.self_attn.o_proj.weight": linear(D, D),
        **{f"{layer}.{name}.weight": gain(D) for name in ("input_layernorm", "post_attention_layernorm")},
        **{f"{layer}.self_attn.{name}.weight": gain(8) for name in extra},
        "model.norm.weight": gain(D),
        "lm_head.weight": linear(V, D, "head"),
    }


def gated(layer="model.layers.*.mlp"):
    return {
        f"{layer}.gate_proj.weight": linear(F, D),
        f"{layer}.up_proj.weight": linear(F, D),
        f"{layer}.down_proj.weight": linear(D, F),
    }


EXPERTS = {
    "model.layers.*.mlp.gate.weight": linear(4, D, "router"),
    **blocks("model.layers.*.mlp.experts.gate_up_proj", ("gate", "up"), ("expert", "Blocks", (4, F, D))),
    "model.layers.*.mlp.experts.down_proj": ("expert", "Blocks", (4, D, F)),
}


def t5_stack(side, attentions):
    layer = f"{side}.block.*.layer.*"
    return {
        **{f"{layer}.{name}.{w}.weight": linear(32, 32) for name in attentions for w in "qkvo"},
        f"{side}.block.*.layer.*.SelfAttention.relative_attention_bias.weight": ("bias table", "Linf", (32 * 4,)),
        f"{layer}.DenseReluDense.wi.weight": linear(64, 32),
        f"{layer}.DenseReluDense.wo.weight": linear(32, 64),
        f"{layer}.layer_norm.weight": gain(32),
        f"{side}.final_layer_norm.weight": gain(32),
    }


def whisper_stack(side, attentions):
    layer = f"model.{side}.layers.*"
    out = {**affine(f"model.{side}.layer_norm", 32), **affine(f"{layer}.final_layer_norm", 32)}
    out |= dense(f"{layer}.fc1", 64, 32) | dense(f"{layer}.fc2", 32, 64)
    for name in attentions:
        out |= affine(f"{layer}.{name}_layer_norm", 32)
        out |= {f"{layer}.{name}.k_proj.weight": linear(32, 32)}
        for w in ("q_proj", "v_proj", "out_proj"):
            out |= dense(f"{layer}.{name}.{w}", 32, 32)
    return out


def fused_attention(name, width):
    return {
        **blocks(f"{name}.in_proj_weight", "qkv", linear(width, width)),
        **blocks(f"{name}.in_proj_bias", "qkv", bias(width)),
    }


def torch_layer(layer, attentions, norms):
    out = dense(f"{layer}.linear1", 16, 8) | dense(f"{layer}.linear2", 8, 16)
    for name in attentions:
        out |= fused_attention(f"{layer}.{name}", 8) | dense(f"{layer}.{name}.out_proj", 8, 8)
    for i in range(1, norms + 1):
        out |= affine(f"{layer}.norm{i}", 8)
    return out


def recurrent(name, gates, size, inside, suffix="l0"):
    return {
        **blocks(f"{name}.weight_ih_{suffix}", gates, linear(size, inside, "gate")),
        **blocks(f"{name}.weight_hh_{suffix}", gates, linear(size, size, "gate")),
        **blocks(f"{name}.bias_ih_{suffix}", gates, bias(size)),
        **blocks(f"{name}.bias_hh_{suffix}", gates, bias(size)),
    }


EXPECTED = {
    models.mlp: {**dense("0", 16, 8), **dense("2", 16, 16), **dense("4", 3, 16, "head")},
    models.raw: {
        "first": linear(16, 8),
        "shift": bias(16),
        "second": linear(3, 16, "head"),
        "temperature": ("scalar", "Absolute", ()),
    },
    models.gpt: {
        "wte.weight": table(65, 32),
        "wpe.weight": table(16, 32),
        **blocks("blocks.*.qkv.weight", "qkv", linear(32, 32)),
        **blocks("blocks.*.qkv.bias", "qkv", bias(32)),
        **dense("blocks.*.proj", 32, 32),
        **dense("blocks.*.up", 128, 32),
        **dense("blocks.*.down", 32, 128),
        **affine("blocks.*.ln1", 32),
        **affine("blocks.*.ln2", 32),
        **affine("ln", 32),
        "head.weight": linear(65, 32, "head"),
    },
    models.mha: {**fused_attention("inside", 8), **dense("inside.out_proj", 8, 8, "head")},
    models.cross: {**fused_attention("inside", 8), **dense("inside.out_proj", 8, 8, "head")},
    models.transformer: {
        **torch_layer("encoder.layers.*", ("self_attn",), 2),
        **torch_layer("decoder.layers.*", ("self_attn", "multihead_attn"), 3),
        **affine("encoder.norm", 8),
        **affine("decoder.norm", 8),
    },
    models.lstm: {
        **recurrent("0.inside", "ifgo", 6, 8),
        **recurrent("0.inside", "ifgo", 6, 6, "l1"),
        **dense("1", 3, 6, "head"),
    },
    models.gru: {
        **recurrent("0.inside", "rzn", 6, 8),
        **recurrent("0.inside", "rzn", 6, 8, "l0_reverse"),
        **dense("1", 3, 12, "head"),
    },
    models.convnext: {
        **dense("stem", 8, 3),
        "stem.weight": conv(8, 3, 4, 4),
        "blocks.*.dw.weight": conv(8, 1, 7, 7),
        "blocks.*.dw.bias": bias(8),
        **affine("blocks.*.norm", 8),
        "blocks.0.up.weight": linear(32, 8),
        "blocks.0.down.weight": linear(8, 32),
        "blocks.1.up.weight": conv(32, 8, 1, 1),
        "blocks.1.down.weight": conv(8, 32, 1, 1),
        "blocks.*.up.bias": bias(32),
        "blocks.*.down.bias": bias(8),
        "blocks.*.gamma": gain(8),
        **affine("norm", 8),
        **dense("head", 10, 8, "head"),
    },
    models.swin: {
        "patches.weight": conv(8, 3, 4, 4),
        "patches.bias": bias(8),
        **blocks("blocks.*.qkv.weight", "qkv", linear(8, 8)),
        **blocks("blocks.*.qkv.bias", "qkv", bias(8)),
        "blocks.*.table": ("bias table", "Linf", (9 * 2,)),
        **dense("blocks.*.proj", 8, 8),
        **dense("blocks.*.up", 16, 8),
        **dense("blocks.*.down", 8, 16),
        **affine("blocks.*.norm1", 8),
        **affine("blocks.*.norm2", 8),
        **affine("norm", 8),
        **dense("head", 10, 8, "head"),
    },
    models.mixer: {
        **dense("across", 6, 4),
        **dense("back", 4, 6),
        **dense("up", 16, 8),
        **dense("down", 8, 16),
        **affine("norm1", 8),
        **affine("norm2", 8),
        **affine("norm", 8),
        **dense("head", 10, 8, "head"),
    },
    models.token_vit: {
        "cls_token": ("token", "RMS", (8,)),
        "pos_embed": table(5, 8, "positions"),
        **blocks("qkv.weight", "qkv", linear(8, 8)),
        **blocks("qkv.bias", "qkv", bias(8)),
        **dense("proj", 8, 8),
        **affine("q_norm", 4),
        **affine("k_norm", 4),
        **affine("norm1", 8),
        **affine("norm", 8),
        **dense("head", 10, 8, "head"),
    },
    models.lora: {
        **dense("0.base_layer", 16, 8),
        "0.lora_A.weight": linear(2, 8, "lora A"),
        "0.lora_B.weight": linear(16, 2, "lora B"),
        **dense("2.base_layer", 4, 16),
        "2.lora_A.weight": linear(2, 16, "lora A"),
        "2.lora_B.weight": linear(4, 2, "lora B"),
    },
    models.gpt2: {
        "transformer.wte.weight": table(65, 32, "embedding, head"),
        "transformer.wpe.weight": table(32, 32),
        **blocks("transformer.h.*.attn.c_attn.weight", "qkv", linear(32, 32)),
        **blocks("transformer.h.*.attn.c_attn.bias", "qkv", bias(32)),
        **dense("transformer.h.*.attn.c_proj", 32, 32),
        **dense("transformer.h.*.mlp.c_fc", 128, 32),
        **dense("transformer.h.*.mlp.c_proj", 32, 128),
        **affine("transformer.h.*.ln_1", 32),
        **affine("transformer.h.*.ln_2", 32),
        **affine("transformer.ln_f", 32),
    },
    models.llama: {**llama(16), **gated()},
    models.qwen3: {**llama(16, ("q_norm", "k_norm")), **gated()},
    models.mixtral: {**llama(16), **EXPERTS},
    models.mixtral_eager: {**llama(16), **EXPERTS},
    models.bert: {
        "bert.embeddings.word_embeddings.weight": table(V, D, "embedding, head"),
        "bert.embeddings.position_embeddings.weight": table(512, D),
        "bert.embeddings.token_type_embeddings.weight": table(2, D),
        **affine("bert.embeddings.LayerNorm", D),
        **dense("bert.encoder.layer.*.attention.self.query", D, D),
        **dense("bert.encoder.layer.*.attention.self.key", D, D),
        **dense("bert.encoder.layer.*.attention.self.value", D, D),
        **dense("bert.encoder.layer.*.attention.output.dense", D, D),
        **affine("bert.encoder.layer.*.attention.output.LayerNorm", D),
        **dense("bert.encoder.layer.*.intermediate.dense", F, D),
        **dense("bert.encoder.layer.*.output.dense", D, F),
        **affine("bert.encoder.layer.*.output.LayerNorm", D),
        **dense("cls.predictions.transform.dense", D, D),
        **affine("cls.predictions.transform.LayerNorm", D),
        "cls.predictions.bias": bias(V),
    },
    models.t5: {
        "shared.weight": table(65, 32, "embedding, head"),
        **t5_stack("encoder", ("SelfAttention",)),
        **t5_stack("decoder", ("SelfAttention", "EncDecAttention")),
    },
    models.vit: {
        "vit.embeddings.cls_token": ("token", "RMS", (D,)),
        "vit.embeddings.position_embeddings": table(17, D, "positions"),
        "vit.embeddings.patch_embeddings.projection.weight": conv(D, 3, 4, 4),
        "vit.embeddings.patch_embeddings.projection.bias": bias(D),
        **{k: v for w in "qkvo" for k, v in dense(f"vit.layers.*.attention.{w}_proj", D, D).items()},
        **affine("vit.layers.*.layernorm_before", D),
        **affine("vit.layers.*.layernorm_after", D),
        **dense("vit.layers.*.mlp.fc1", F, D),
        **dense("vit.layers.*.mlp.fc2", D, F),
        **affine("vit.layernorm", D),
        **dense("classifier", 10, D, "head"),
    },
    models.mamba: {
        "backbone.embeddings.weight": table(65, 32, "embedding, head"),
        "backbone.layers.*.norm.weight": gain(32),
        "backbone.layers.*.mixer.A_log": ("state space", "Linf", (64 * 4,)),
        "backbone.layers.*.mixer.D": gain(64),
        "backbone.layers.*.mixer.conv1d.weight": conv(64, 1, 4),
        "backbone.layers.*.mixer.conv1d.bias": bias(64),
        **blocks("backbone.layers.*.mixer.in_proj.weight", "01", linear(64, 32)),
        "backbone.layers.*.mixer.x_proj.weight[0]": linear(3, 64),
        **blocks("backbone.layers.*.mixer.x_proj.weight", "12", linear(4, 64)),
        **dense("backbone.layers.*.mixer.dt_proj", 64, 3),
        "backbone.layers.*.mixer.out_proj.weight": linear(32, 64),
        "backbone.norm_f.weight": gain(32),
    },
    models.whisper: {
        "model.encoder.conv1.weight": conv(32, 8, 3),
        "model.encoder.conv1.bias": bias(32),
        "model.encoder.conv2.weight": conv(32, 32, 3),
        "model.encoder.conv2.bias": bias(32),
        "model.encoder.embed_positions.weight": table(16, 32),
        "model.decoder.embed_tokens.weight": table(65, 32, "embedding, head"),
        "model.decoder.embed_positions.weight": table(32, 32),
        **whisper_stack("encoder", ("self_attn",)),
        **whisper_stack("decoder", ("self_attn", "encoder_attn")),
    },
}
