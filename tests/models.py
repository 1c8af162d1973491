"""Models as strangers write them, in plain torch: each with an input that compiles it."""

import itertools

import torch
from torch import nn
from torch.nn import functional


def mlp():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 3)), (rows(4, 8),), {}


class Functional(nn.Module):
    """The same without layers: raw parameters, one stored (in, out)."""

    def __init__(self):
        super().__init__()
        self.first = nn.Parameter(torch.randn(16, 8) / 4)
        self.shift = nn.Parameter(torch.zeros(16))
        self.second = nn.Parameter(torch.randn(16, 3) / 4)
        self.temperature = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return torch.relu(functional.linear(x, self.first) + self.shift) @ self.second * self.temperature


def raw():
    return Functional(), (rows(4, 8),), {}


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in self.qkv(self.ln1(x)).chunk(3, -1))
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(y.transpose(1, 2).flatten(2))
        return x + self.down(functional.gelu(self.up(self.ln2(x))))


class GPT(nn.Module):
    def __init__(self, vocabulary=65, context=16, width=32, heads=4, depth=2):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.ln, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)

    def forward(self, ids):
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.ln(x))


def gpt():
    return GPT(), (ids(),), {}


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=65, n_positions=32, n_embd=32, n_layer=2, n_head=4, bos_token_id=None, eos_token_id=None
    )
    return GPT2LMHeadModel(config), (ids(),), {}


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**SMALL, num_key_value_heads=2)), (ids(),), {}


def qwen3():
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM(Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=8)), (ids(),), {}


def mixtral():
    from transformers import MixtralConfig, MixtralForCausalLM

    return MixtralForCausalLM(MixtralConfig(**SMALL, num_key_value_heads=2, num_local_experts=4)), (ids(),), {}


def mixtral_eager():
    model, args, kwargs = mixtral()
    model.set_experts_implementation("eager")
    return model, args, kwargs


def bert():
    from transformers import BertConfig, BertForMaskedLM

    return BertForMaskedLM(BertConfig(**SMALL)), (ids(),), {"attention_mask": torch.ones(2, 12, dtype=torch.long)}


def t5():
    from transformers import T5Config, T5ForConditionalGeneration

    model = T5ForConditionalGeneration(T5Config(vocab_size=65, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4))
    return model, (), {"input_ids": ids(), "decoder_input_ids": ids()[:, :7]}


def vit():
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(**{**SMALL, "vocab_size": None}, image_size=16, patch_size=4, num_labels=10)
    return ViTForImageClassification(config), (rows(2, 3, 16, 16),), {}


def mamba():
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(vocab_size=65, hidden_size=32, state_size=4, num_hidden_layers=2, time_step_rank=3)
    return MambaForCausalLM(config), (ids(length=6),), {}


def whisper():
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    layers = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in (("layers", 2), ("ffn_dim", 64))}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    config = WhisperConfig(
        vocab_size=65, d_model=32, num_mel_bins=8, max_source_positions=16, max_target_positions=32, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, decoder_start_token_id=1, begin_suppress_tokens=None, **layers, **heads
    )  # fmt: skip
    return WhisperForConditionalGeneration(config), (rows(2, 8, 32),), {"decoder_input_ids": ids()}


SMALL = {
    "vocab_size": 65,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "bos_token_id": None,
    "eos_token_id": None,
}


def mha():
    model = nn.MultiheadAttention(8, 2, batch_first=True)
    x = rows(2, 5, 8)
    return Only(model, 0), (x, x, x), {}


def cross():
    """Queries from one sequence, keys and values from another: the fused weight is used in two slices."""
    model = nn.MultiheadAttention(8, 2, batch_first=True)
    x, y = rows(2, 5, 8), rows(2, 7, 8)
    return Only(model, 0), (x, y, y), {"need_weights": False}


def transformer():
    return nn.Transformer(8, 2, 1, 1, 16, batch_first=True), (rows(2, 5, 8), rows(2, 4, 8)), {}


def lstm():
    return nn.Sequential(Only(nn.LSTM(8, 6, 2, batch_first=True), 0), nn.Linear(6, 3)), (rows(2, 5, 8),), {}


def gru():
    return (
        nn.Sequential(Only(nn.GRU(8, 6, batch_first=True, bidirectional=True), 0), nn.Linear(12, 3)),
        (rows(2, 5, 8),),
        {},
    )


class Only(nn.Module):
    """One of several outputs."""

    def __init__(self, inside, which):
        super().__init__()
        self.inside, self.which = inside, which

    def forward(self, *args, **kwargs):
        return self.inside(*args, **kwargs)[self.which]


class Basic(nn.Module):
    def __init__(self, inside, out, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inside, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        shortcut = nn.Sequential(nn.Conv2d(inside, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        self.down = shortcut if stride > 1 else nn.Identity()

    def forward(self, x):
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        return functional.relu(y + self.down(x))


class ResNet18(nn.Module):
    def __init__(self, width=4, channels=1, classes=10):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        widths = [width << k for k in (0, 0, 1, 2, 3)]
        pairs = [(Basic(a, b, 1 + (a < b)), Basic(b, b, 1)) for a, b in itertools.pairwise(widths)]
        self.layers, self.fc = (
            nn.Sequential(*(block for pair in pairs for block in pair)),
            nn.Linear(widths[-1], classes),
        )

    def forward(self, x):
        x = functional.max_pool2d(functional.relu(self.bn(self.stem(x))), 3, 2, 1)
        return self.fc(functional.adaptive_avg_pool2d(self.layers(x), 1).flatten(1))


def resnet18():
    return ResNet18(), (rows(4, 1, 28, 28),), {}


class LoRA(nn.Module):
    """As PEFT wraps a layer."""

    def __init__(self, base, rank=2):
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        self.lora_A, self.lora_B = (
            nn.Linear(base.in_features, rank, bias=False),
            nn.Linear(rank, base.out_features, bias=False),
        )
        self.lora_dropout = nn.Dropout(0.1)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x):
        return self.base_layer(x) + self.lora_B(self.lora_A(self.lora_dropout(x))) * 2.0


def lora():
    return nn.Sequential(LoRA(nn.Linear(8, 16)), nn.ReLU(), LoRA(nn.Linear(16, 4))), (rows(4, 8),), {}


class ConvNeXt(nn.Module):
    """Depthwise 7×7, a normalisation of channels, an MLP (of 1×1 convolutions in the second block) and a layer scale."""

    def __init__(self, width=8):
        super().__init__()
        self.stem, self.norm, self.head = nn.Conv2d(3, width, 4, 4), nn.LayerNorm(width), nn.Linear(width, 10)
        self.blocks = nn.ModuleList(ConvNeXtBlock(width, one_by_one) for one_by_one in (False, True))

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(self.norm(x.mean([-2, -1])))


class ConvNeXtBlock(nn.Module):
    def __init__(self, width, one_by_one):
        super().__init__()
        self.one_by_one = one_by_one
        self.dw, self.norm = nn.Conv2d(width, width, 7, padding=3, groups=width), nn.LayerNorm(width)
        layer = (lambda i, o: nn.Conv2d(i, o, 1)) if one_by_one else nn.Linear
        self.up, self.down = layer(width, 4 * width), layer(4 * width, width)
        self.gamma = nn.Parameter(torch.full((width,), 1e-6))

    def forward(self, x):
        x = self.norm(self.dw(x).permute(0, 2, 3, 1))
        if self.one_by_one:
            x = self.down(functional.gelu(self.up(x.permute(0, 3, 1, 2))))
            return x * self.gamma.reshape(1, -1, 1, 1)
        return (self.gamma * self.down(functional.gelu(self.up(x)))).permute(0, 3, 1, 2)


def convnext():
    return ConvNeXt(), (rows(2, 3, 16, 16),), {}


class Swin(nn.Module):
    """Windows of tokens, shifted in the second block; what is added to scores is picked from a table by distance."""

    def __init__(self, width=8, heads=2, window=2):
        super().__init__()
        self.patches, self.norm, self.head = nn.Conv2d(3, width, 4, 4), nn.LayerNorm(width), nn.Linear(width, 10)
        self.blocks = nn.ModuleList(SwinBlock(width, heads, window, shift) for shift in (0, 1))

    def forward(self, x):
        x = self.patches(x).permute(0, 2, 3, 1)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean((1, 2)))


class SwinBlock(nn.Module):
    def __init__(self, width, heads, window, shift):
        super().__init__()
        self.heads, self.window, self.shift = heads, window, shift
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        at = torch.cartesian_prod(torch.arange(window), torch.arange(window))
        apart = at[:, None] - at + window - 1
        self.register_buffer("index", apart[..., 0] * (2 * window - 1) + apart[..., 1])

    def attend(self, x):
        b, t, width = x.shape
        q, k, v = self.qkv(x).reshape(b, t, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.table[self.index.view(-1)].view(t, t, -1).permute(2, 0, 1)
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + bias.unsqueeze(0)
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, t, width))

    def forward(self, x):
        b, h, w, width = x.shape
        m = self.window
        y = torch.roll(self.norm1(x), (-self.shift, -self.shift), (1, 2))
        y = y.view(b, h // m, m, w // m, m, width).transpose(2, 3).reshape(-1, m * m, width)
        y = self.attend(y).view(b, h // m, w // m, m, m, width).transpose(2, 3).reshape(b, h, w, width)
        x = x + torch.roll(y, (self.shift, self.shift), (1, 2))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


def swin():
    return Swin(), (rows(2, 3, 16, 16),), {}


class Mixer(nn.Module):
    """Tokens are mixed by a map on the transposed axis."""

    def __init__(self, tokens=4, width=8):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.across, self.back = nn.Linear(tokens, 6), nn.Linear(6, tokens)
        self.up, self.down = nn.Linear(width, 16), nn.Linear(16, width)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x):
        x = x + self.back(functional.gelu(self.across(self.norm1(x).transpose(1, 2)))).transpose(1, 2)
        x = x + self.down(functional.gelu(self.up(self.norm2(x))))
        return self.head(self.norm(x).mean(1))


def mixer():
    return Mixer(), (rows(2, 4, 8),), {}


class TokenViT(nn.Module):
    """A class token in front, raw positions, and q, k, v fused and split as timm does."""

    def __init__(self, tokens=4, width=8, heads=2):
        super().__init__()
        self.cls_token, self.pos_embed = nn.Parameter(torch.zeros(1, 1, width)), nn.Parameter(torch.randn(1, 5, width))
        self.heads, self.norm1, self.norm = heads, nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.q_norm, self.k_norm = nn.LayerNorm(width // heads), nn.LayerNorm(width // heads)
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        x = torch.cat((self.cls_token.expand(len(x), -1, -1), x), dim=1) + self.pos_embed
        b, t, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        y = functional.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        return self.head(self.norm(x + self.proj(y.transpose(1, 2).reshape(b, t, width)))[:, 0])


def token_vit():
    return TokenViT(), (rows(2, 4, 8),), {}


PLAIN = [mlp, raw, gpt, mha, cross, transformer, lstm, gru, resnet18, convnext, swin, mixer, token_vit, lora]
TRANSFORMERS = [gpt2, llama, qwen3, mixtral, mixtral_eager, bert, t5, vit, mamba, whisper]


def rows(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def ids(vocabulary=65, length=12):
    return torch.randint(vocabulary, (2, length), generator=torch.Generator().manual_seed(1))


def made(factory, seed=0):
    """The model of a factory and its example arguments; from the same weights each time."""
    torch.manual_seed(seed)
    return factory()


class Opaque(nn.Module):
    """A module with a raw parameter, whose operation no mode can see."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 4))

    def forward(self, x):
        return torch.from_numpy(x.detach().numpy() @ self.w.detach().numpy().T)
