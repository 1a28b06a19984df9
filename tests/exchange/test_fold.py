"""What is not plain LoRA becomes plain LoRA that does the same, or is refused."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, PeftConfig, PeftModel, get_peft_model

from lorax_vlm.adapters.files import read_adapter_files
from lorax_vlm.errors import UnsupportedAdapter
from lorax_vlm.exchange.fold import fold_adapter
from lorax_vlm.models.loading import LoadedModel, load_model
from tests.adapters_for_tests import edit_config, write_random_adapter

SITES = r"language_model\.model\.decoder\.layers\.\d+\.self_attn\.(q_proj|v_proj)"
CONFIGS = {
    "DoRA": LoraConfig(r=4, lora_alpha=8, target_modules=SITES, use_dora=True),
    "rsLoRA": LoraConfig(r=4, lora_alpha=8, target_modules=SITES, use_rslora=True),
    "patterns": LoraConfig(
        r=4, lora_alpha=8, target_modules=SITES, rank_pattern={"q_proj": 2}, alpha_pattern={"v_proj": 3}
    ),
    "LOHA": LoHaConfig(r=4, alpha=8, target_modules=SITES),
    "LOKR": LoKrConfig(r=4, alpha=8, target_modules=SITES),
}


def write(config: PeftConfig, folder: Path, seed: int = 0) -> Path:
    """An adapter of another method, every number random, saved by plain PEFT."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(load_model("blip2-opt-mini").model, config)
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "magnitude" in name:
            parameter.data *= 1 + 0.1 * torch.randn_like(parameter)
        elif parameter.requires_grad:
            parameter.data = 0.2 * torch.randn_like(parameter)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it takes the bias of lora_bias for a broken factor
        model.save_pretrained(str(folder))
    return folder


@torch.no_grad()
def peft_logits(folder: Path) -> torch.Tensor:
    base = load_model("blip2-opt-mini")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        PeftModel.from_pretrained(base.model, str(folder)).eval()
    from lorax_vlm.data.scenes import make_scene

    features = base.family.encode_images(base.model, base.family.pixel_values([make_scene(7).image]))
    return base.family.answer_logits(base.model, features, ["Question: How many? Answer:"])


@pytest.mark.parametrize("method", CONFIGS)
def test_folded_it_does_the_same_in_plain_peft(mini: LoadedModel, tmp_path: Path, method: str) -> None:
    source = write(CONFIGS[method], tmp_path / "source")
    report = fold_adapter(mini, source, tmp_path / "folded")
    files = read_adapter_files(tmp_path / "folded", "folded")
    assert len(files.sites) == 6
    assert report.logits_error < 1e-3
    assert report.ranks == tuple(files.ranks)
    assert torch.allclose(peft_logits(source), peft_logits(tmp_path / "folded"), atol=2e-3)


def test_a_rank_that_loses_too_much_is_refused(mini: LoadedModel, tmp_path: Path) -> None:
    source = write(CONFIGS["DoRA"], tmp_path / "source")
    with pytest.raises(UnsupportedAdapter, match="as plain LoRA of rank 2 its logits differ"):
        fold_adapter(mini, source, tmp_path / "folded", rank=2)
    fold_adapter(mini, source, tmp_path / "coarse", rank=2, tolerance=10)
    assert read_adapter_files(tmp_path / "coarse", "coarse").ranks == [2]


def test_more_than_weights_is_refused_and_the_base_stays_plain(mini: LoadedModel, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in mini.model.state_dict().items()}
    bias = write(LoraConfig(r=2, target_modules=SITES, lora_bias=True), tmp_path / "bias")
    with pytest.raises(UnsupportedAdapter, match="bias"):
        fold_adapter(mini, bias, tmp_path / "out")
    modules = write_random_adapter(mini, tmp_path / "modules", "light")
    edit_config(modules, modules_to_save=["language_projection"])
    with pytest.raises(UnsupportedAdapter, match="whole modules"):
        fold_adapter(mini, modules, tmp_path / "out")
    after = mini.model.state_dict()
    assert set(before) == set(after)
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert json.loads((bias / "adapter_config.json").read_text())["lora_bias"] is True
