"""Models by the names that their libraries give them."""

import os

import pytest
from click.testing import CliRunner

import normgeo as ng
from normgeo.cli.main import commands
from normgeo.lab import UserError
from normgeo.lab.named import named_model

os.environ["HF_HUB_OFFLINE"] = "1"


def explained(*arguments):
    return CliRunner().invoke(commands, ["explain", *arguments])


@pytest.mark.parametrize("name", ["gpt2", "GPT2LMHeadModel", "bert", "t5", "vit", "mamba"])
def test_the_command_explains_models_of_transformers(name):
    pytest.importorskip("transformers")
    result = explained(f"transformers:{name}", "--tiny")
    assert result.exit_code == 0, result.output
    assert "typical" in result.output
    assert "assumed" not in result.output


def test_options_reach_the_configuration():
    pytest.importorskip("transformers")
    sizes = ["--config", "n_layer=1", "--config", "n_embd=24", "--config", "n_head=3", "--config", "vocab_size=50"]
    result = explained("transformers:gpt2", *sizes, "--json", "--device", "meta")
    assert result.exit_code == 2 or isinstance(result.exception, UserError)  # it looks at values
    result = explained("transformers:gpt2", *sizes, "--json")
    plan = ng.Plan.from_json(result.output)
    assert plan.leaves[0].shape == (50, 24)
    assert len([leaf for leaf in plan.leaves if leaf.role == "linear"]) == 6
    result = explained("transformers:dinov2", "--tiny", "--role", "*.mask_token=unused", "--json")
    assert ng.Plan.from_json(result.output).leaves[1].role == "unused"


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        (["transformers:gpt22"], "no model type and no class 'gpt22'"),
        (["transformers:gpt2", "--config", "n_layer"], "has no ="),
        (["transformers:gpt2", "--config", "n_head=5"], "transformers:gpt2 cannot be made"),
        (["transformers:llama"], "6.7 billion parameters; write --tiny"),
        (["transformers:dinov2", "--tiny"], 'roles={"dinov2.embeddings.mask_token": "unused"}'),
    ],
)
def test_mistakes_are_sentences(asked, answer):
    pytest.importorskip("transformers")
    result = explained(*asked)
    assert isinstance(result.exception, UserError)
    assert answer in str(result.exception)


@pytest.mark.parametrize(
    "name", ["resnet18", "vit_tiny_patch16_224", "convnext_atto", "mixer_s32_224", "swin_tiny_patch4_window7_224"]
)
@pytest.mark.slow
def test_models_of_timm_are_covered(name):
    pytest.importorskip("timm", reason="timm is not installed: pip install --no-deps timm torchvision")
    model, args, kwargs = named_model("timm", name)
    plan = ng.compile(model, args, kwargs, strict=True)
    assert {leaf.parameter for leaf in plan.leaves} == {name for name, _ in model.named_parameters()}
    role = {leaf.name: leaf.role for leaf in plan.leaves}
    traps = {
        "resnet18": {"conv1.weight": "convolution", "bn1.weight": "gain", "fc.weight": "head"},
        "vit_tiny_patch16_224": {
            "cls_token": "token", "pos_embed": "positions", "blocks.0.attn.qkv.weight[k]": "linear", "head.weight": "head",
        },
        "convnext_atto": {
            "stages.0.blocks.0.gamma": "gain", "stages.0.blocks.0.conv_dw.weight": "convolution", "head.fc.weight": "head",
        },
        "mixer_s32_224": {"blocks.0.mlp_tokens.fc1.weight": "linear", "head.weight": "head"},
        "swin_tiny_patch4_window7_224": {
            "layers.0.blocks.0.attn.relative_position_bias_table": "bias table",
            "layers.0.blocks.0.attn.qkv.weight[q]": "linear", "head.fc.weight": "head",
        },
    }[name]  # fmt: skip
    assert {leaf: role[leaf] for leaf in traps} == traps
