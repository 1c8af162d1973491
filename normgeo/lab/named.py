"""Models of transformers and timm by their names, with an example input, of random weights; nothing is downloaded."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from normgeo.lab.errors import UserError

__all__ = ["LIBRARIES", "named_model"]

Made = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]
HEADS = ("Seq2SeqLM", "SpeechSeq2Seq", "CTC", "MaskedLM", "CausalLM", "ImageClassification", "ObjectDetection")
"""which of its models a type stands for: the first kind that it has"""
LAYERS = re.compile(r"(num_(hidden_)?|n_|encoder_|decoder_|num_encoder_|num_decoder_)layers?|depths?|num_blocks")
WIDTHS = re.compile(r"(hidden|(moe_)?intermediate)_size|d_model|d_ff|n_embd|n_inner|(encoder_|decoder_)?ffn_dim")
TINY = 16
"""by how much tiny models are narrower"""
MOST = 500_000_000
"""parameters that fit into the memory of any machine"""


def named_model(
    library: str, name: str, config: Mapping[str, Any] | None = None, *, tiny: bool = False, device: str = "cpu"
) -> Made:
    """(model, args, kwargs). name: of a timm model; or a model type or class of transformers, such as gpt2 or
    GPT2LMHeadModel. config: values in place of the defaults. tiny: no more than two layers of any kind, 16 times narrower.
    On the meta device weights take no memory, whatever their size, but models that look at values do not run.

    >>> model, args, kwargs = named_model("transformers", "gpt2", {"n_head": 4}, tiny=True)
    >>> type(model).__name__, len(model.transformer.h), kwargs["input_ids"].shape
    ('GPT2LMHeadModel', 2, torch.Size([2, 12]))
    """
    make = LIBRARIES[library]
    try:
        with torch.device("meta"):
            made = make(name, dict(config or {}), tiny)
        if device == "meta":
            return made
        if (count := sum(p.numel() for p in made[0].parameters())) > MOST:
            raise UserError(
                f"{library}:{name} has {count / 1e9:.1f} billion parameters; write --tiny, --config KEY=VALUE for "
                f"a smaller one, or --device meta"
            )
        with torch.device(device):
            return make(name, dict(config or {}), tiny)
    except ImportError as error:
        raise UserError(f"{library}: {error}; write pip install {library}") from error
    except UserError:
        raise
    except Exception as error:  # whatever a configuration meets in the library
        raise UserError(f"{library}:{name} cannot be made: {str(error).strip().splitlines()[0]}") from error


def _of_transformers(name: str, given: dict[str, Any], tiny: bool) -> Made:
    import transformers

    config_class, model_class = _classes(transformers, name)
    if tiny:
        given = _smaller(config_class().to_dict()) | given
    config = config_class(**given)
    config.use_cache = False
    model = (model_class or _model_of(transformers, type(config)))(config)
    named = _inputs(config, model)
    return model, (), named


def _classes(transformers: Any, name: str) -> tuple[type[Any], type[Any] | None]:
    """The configuration of a model type or of a class of models, and the class if it was named."""
    known = transformers.models.auto.configuration_auto.CONFIG_MAPPING
    if name in known:
        return known[name], None
    model_class = getattr(transformers, name, None)
    if model_class is None or not hasattr(model_class, "config_class"):
        raise UserError(f"transformers has no model type and no class {name!r}; write for instance transformers:gpt2")
    return model_class.config_class, model_class


def _model_of(transformers: Any, config_class: type[Any]) -> type[Any]:
    automatic = [getattr(transformers, f"AutoModelFor{head}") for head in HEADS]
    for auto in (*automatic, transformers.AutoModel):
        if config_class in auto._model_mapping:
            found = auto._model_mapping[config_class]
            return found[0] if isinstance(found, tuple) else found
    raise UserError(f"transformers has no model for {config_class.__name__}; name its class")


def _smaller(values: Mapping[str, Any]) -> dict[str, Any]:
    small: dict[str, Any] = {}
    for key, value in values.items():
        if LAYERS.fullmatch(key) and isinstance(value, int):
            small[key] = min(value, 2)
        elif LAYERS.fullmatch(key) and isinstance(value, list):
            small[key] = [min(n, 2) for n in value]
        elif WIDTHS.fullmatch(key) and isinstance(value, int) and value >= 16 * TINY and value % TINY == 0:
            small[key] = value // TINY
        elif isinstance(value, dict) and key.endswith("_config") and (inside := _smaller(value)):
            small[key] = inside
    return small


def _inputs(config: Any, model: nn.Module) -> dict[str, Tensor]:
    """Random arguments of the names that the model's forward asks for, two of each."""
    wanted = inspect.signature(model.forward).parameters
    main: str = getattr(model, "main_input_name", "")
    text, image = config.get_text_config(), getattr(config, "vision_config", config)
    ids = torch.randint(min(getattr(text, "vocab_size", None) or 2, 1000), (2, 12))
    known = {
        "input_ids": lambda: ids,
        "pixel_values": lambda: torch.randn(2, getattr(image, "num_channels", 3), *_pair(image)),
        "input_values": lambda: torch.randn(2, 4000),
        "input_features": lambda: torch.randn(2, config.num_mel_bins, 2 * config.max_source_positions),
    }
    if main not in known:
        raise UserError(f"{type(model).__name__} takes {main or 'nothing known'}; write a factory and MODULE:FACTORY")
    names = [main]
    if hasattr(config, "vision_config") and "pixel_values" in wanted:
        names += ["pixel_values"]
    out = {key: known[key]() for key in dict.fromkeys(names)}
    return out | ({"decoder_input_ids": ids} if "decoder_input_ids" in wanted else {})


def _pair(config: Any) -> tuple[int, int]:
    size = getattr(config, "image_size", None) or 224
    return (size, size) if isinstance(size, int) else tuple(size)


def _of_timm(name: str, given: dict[str, Any], tiny: bool) -> Made:
    import timm

    if tiny:
        raise UserError(
            "--tiny knows transformers only; for timm write --config depths=[1,1,1,1] or another model's name"
        )
    model = timm.create_model(name, pretrained=False, **given)
    return model, (torch.randn(2, *model.default_cfg["input_size"]),), {}


LIBRARIES = {"transformers": _of_transformers, "timm": _of_timm}
