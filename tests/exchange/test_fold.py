"""What is not plain LoRA becomes plain LoRA that does the same on the base as it is, or is refused by name.

What there is to fold is asked of the installed PEFT: its initialisations, its kinds of bias, its methods.
"""

import copy
import dataclasses
import json
import typing
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from safetensors.torch import load_file

from lorax_vlm.adapters.files import read_adapter_files
from lorax_vlm.data.scenes import make_scene
from lorax_vlm.errors import (
    AdapterExists,
    DamagedAdapter,
    UnsupportedAdapter,
    UntrainedAdapter,
    UsageError,
)
from lorax_vlm.exchange.fold import fold_adapter
from lorax_vlm.models.loading import LoadedModel, load_model
from lorax_vlm.runtime.attached import AttachedAdapters
from tests.adapters_for_tests import edit_config, edit_weights, write_random_adapter

SITES = r"language_model\.model\.decoder\.layers\.\d+\.self_attn\.(q_proj|v_proj)"
NAMED = [
    f"language_model.model.decoder.layers.{layer}.self_attn.{part}" for layer in (0, 1) for part in ("q_proj", "v_proj")
]
PROMPTS = ("Question: How many? Answer:", "Question: Is it red? Answer:")


def write(config: PeftConfig, folder: Path, base: LoadedModel, seed: int = 0) -> Path:
    """An adapter of another method, every trained number moved away from where it began, saved by plain PEFT."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(copy.deepcopy(base.model), config).eval()
        torch.manual_seed(seed)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data + 0.1 * torch.randn_like(parameter)
        model.save_pretrained(str(folder))
    return folder


@torch.no_grad()
def logits(base: LoadedModel, folder: Path | None) -> torch.Tensor:
    """By plain PEFT on a base of its own, on other inputs than those that folding looks at."""
    model = copy.deepcopy(base.model)
    if folder is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            PeftModel.from_pretrained(model, str(folder)).eval()
    pixels = base.family.prepare([make_scene(seed).image for seed in (7, 8)])
    return base.family.answer_logits(model, base.family.encode_images(model, pixels, PROMPTS), PROMPTS)


@pytest.fixture
def untouched(mini: LoadedModel) -> typing.Iterator[None]:
    """Whatever a test does, the base is the same afterwards, bit for bit."""
    before = {name: (value.data_ptr(), value.clone()) for name, value in mini.model.state_dict().items()}
    modules = [(name, type(module)) for name, module in mini.model.named_modules()]
    yield
    after = mini.model.state_dict()
    assert set(before) == set(after)
    assert [(name, type(module)) for name, module in mini.model.named_modules()] == modules
    for name, (place, value) in before.items():
        assert after[name].data_ptr() == place
        assert torch.equal(after[name], value), name
    assert not any(parameter.requires_grad for parameter in mini.model.parameters())


def require_same(mini: LoadedModel, source: Path, out: Path) -> None:
    expected, found, alone = (logits(mini, folder) for folder in (source, out, None))
    effect = float((expected - alone).abs().max())
    assert effect > 0.02
    assert float((found - expected).abs().max()) < 2e-3 * effect
    attached = AttachedAdapters(mini.plain_copy())
    attached.attach("folded", out)
    image = make_scene(7).image
    assert torch.allclose(attached.answer_logits("folded", image, PROMPTS[0]), expected[0], atol=2e-3 * effect)


# --- initialisations, kinds of bias, variants of LoRA -----------------------------------------------------------------

HINTS = typing.get_type_hints(LoraConfig)


def words_of(option: str) -> list[str]:
    """Every word that an option may be, as PEFT declares it."""
    found: list[str] = []
    for part in (HINTS[option], *typing.get_args(HINTS[option])):
        if typing.get_origin(part) is typing.Literal:
            found += typing.get_args(part)
    return [word.replace("[number of iters]", "4") for word in dict.fromkeys(found)]


STARTS = [True, False, *words_of("init_lora_weights")]
NOT_LOADED = {"corda": "eigens"} | ({} if torch.cuda.is_available() else {"loftq": "scipy|CUDA"})
"""What PEFT itself does not load: it would begin anew, with what is not in the file, or not installed."""
RANDOM = ("pissa_niter_4",)
"""What begins at random, so that the file does not say what was trained."""


def lora(**options: Any) -> LoraConfig:
    """A configuration, without PEFT's remarks on it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if options.get("init_lora_weights") == "loftq":
            options["loftq_config"] = {"loftq_bits": 4, "loftq_iter": 1}
        return LoraConfig(**options)


def test_all_known_initialisations_are_declared() -> None:
    assert {"gaussian", "eva", "olora", "pissa", "pissa_niter_4", "corda", "loftq", "orthogonal"} <= set(STARTS)
    assert words_of("bias") == ["none", "all", "lora_only"]


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("start", STARTS, ids=str)
def test_every_initialisation_is_folded_or_refused(mini: LoadedModel, tmp_path: Path, start: Any) -> None:
    made_as = True if start in NOT_LOADED else start
    config = lora(r=4, lora_alpha=8, target_modules=NAMED, init_lora_weights=made_as)
    source = write(config, tmp_path / "source", mini)
    if start in RANDOM:
        with pytest.raises(UnsupportedAdapter, match="each time"):
            fold_adapter(mini, source, tmp_path / "out")
        assert not torch.allclose(logits(mini, source), logits(mini, source), atol=0.1), "PEFT loads it anew each time"
        return
    if start in NOT_LOADED:
        edit_config(source, init_lora_weights=start, loftq_config={"loftq_bits": 4, "loftq_iter": 1})
        with pytest.raises(Exception, match=NOT_LOADED[start]):
            logits(mini, source)
        with pytest.raises(UnsupportedAdapter, match="PEFT cannot put it on this base"):
            fold_adapter(mini, source, tmp_path / "out")
        return
    fold_adapter(mini, source, tmp_path / "out")
    require_same(mini, source, tmp_path / "out")


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("start", ["pissa", "olora", "orthogonal", "eva", "gaussian"])
def test_what_is_loaded_directly_is_what_leaves_the_base_alone(mini: LoadedModel, tmp_path: Path, start: str) -> None:
    source = write(lora(r=4, target_modules=NAMED, init_lora_weights=start), tmp_path / "source", mini)
    attached = AttachedAdapters(mini.plain_copy())
    if start in ("pissa", "olora"):
        with pytest.raises(UnsupportedAdapter, match="lorax-vlm exchange fold makes it plain"):
            attached.attach("it", source)
        return
    attached.attach("it", source)
    found = attached.answer_logits("it", make_scene(7).image, PROMPTS[0])
    assert torch.allclose(found, logits(mini, source)[0], atol=1e-4)


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("bias", words_of("bias"))
@pytest.mark.parametrize("trained", [False, True])
def test_every_kind_of_bias(mini: LoadedModel, tmp_path: Path, bias: str, trained: bool) -> None:
    """Saved biases that are the base's own say nothing; others cannot be LoRA."""
    source = write(LoraConfig(r=4, target_modules=NAMED, bias=bias), tmp_path / "source", mini)
    own = {f"base_model.model.{name}": value for name, value in mini.model.state_dict().items()}

    stored = load_file(source / "adapter_model.safetensors")
    if not trained:
        plain = {name: own.get(name.replace(".base_layer", "")) for name in stored}
        edit_weights(source, {name: value for name, value in plain.items() if value is not None})
    if bias != "none" and trained:
        with pytest.raises(UnsupportedAdapter, match="bias: it changes it, which LoRA cannot"):
            fold_adapter(mini, source, tmp_path / "out")
        return
    fold_adapter(mini, source, tmp_path / "out")
    require_same(mini, source, tmp_path / "out")


VARIANTS = {
    "DoRA": {"use_dora": True},
    "rsLoRA": {"use_rslora": True},
    "ranks by pattern": {"rank_pattern": {"q_proj": 2, r"layers\.1\.self_attn\.v_proj": 3}},
    "alphas by pattern": {"alpha_pattern": {"v_proj": 3, r".*\.0\.self_attn\.q_proj": 5}},
    "ranks and alphas, rsLoRA": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 5}, "use_rslora": True},
    "a pattern of targets": {"target_modules": SITES},
    "all but some": {"target_modules": ["q_proj", "v_proj"], "exclude_modules": r".*layers\.[12]\..*"},
    "one layer": {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": ["layers"]},
    "all linear layers": {"target_modules": "all-linear"},
    "DoRA from PiSSA": {"use_dora": True, "init_lora_weights": "pissa"},
}


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_variants_of_lora(mini: LoadedModel, tmp_path: Path, variant: dict[str, Any]) -> None:
    options = {"r": 4, "lora_alpha": 8, "target_modules": NAMED, **variant}
    source = write(LoraConfig(**options), tmp_path / "source", mini)
    edit_config(source, target_modules=options["target_modules"])
    report = fold_adapter(mini, source, tmp_path / "out")
    assert report.logits_error < 1e-3
    assert report.ranks == tuple(read_adapter_files(tmp_path / "out", "out").ranks)
    require_same(mini, source, tmp_path / "out")


# --- every other method -----------------------------------------------------------------------------------------------

METHODS = [kind.value for kind in PEFT_TYPE_TO_TUNER_MAPPING]
OPTIONS: dict[str, dict[str, Any]] = {
    "ADALORA": {"total_step": 10, "init_r": 4, "target_r": 4},
    "BOFT": {"boft_block_size": 4},
    "C3A": {"block_size": 32},
    "FOURIERFT": {"n_frequency": 20},
    "IA3": {"feedforward_modules": []},
    "LN_TUNING": {"target_modules": ["self_attn_layer_norm"]},
    "OFT": {"r": 0, "oft_block_size": 16},
    "ROAD": {"group_size": 32},
    "TRAINABLE_TOKENS": {"target_modules": ["embed_tokens"], "token_indices": [1, 2]},
    "VBLORA": {"vector_length": 32, "num_vectors": 16, "topk": 2},
}
FOLDED = {
    "ADALORA",
    "BOFT",
    "FOURIERFT",
    "HIRA",
    "HRA",
    "LOHA",
    "LOKR",
    "LORA",
    "MISS",
    "OFT",
    "RANDLORA",
    "SHIRA",
    "VBLORA",
    "VERA",
}
"""At least these."""


def make(kind: str, base: LoadedModel, folder: Path) -> Path | Exception:
    """An adapter of a method with its default options, or why PEFT does not make one for this base."""
    known = {field.name for field in dataclasses.fields(PEFT_TYPE_TO_CONFIG_MAPPING[kind])}
    options = {"target_modules": NAMED, "r": 4, **OPTIONS.get(kind, {})}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = PEFT_TYPE_TO_CONFIG_MAPPING[kind](**{key: value for key, value in options.items() if key in known})
            source = write(config, folder, base)
            logits(base, source)
    except Exception as error:
        return error
    return source


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("kind", METHODS)
def test_every_method_is_folded_or_refused(mini: LoadedModel, tmp_path: Path, kind: str) -> None:
    made = make(kind, mini, tmp_path / "source")
    if isinstance(made, Exception):
        source = write(LoraConfig(r=4, target_modules=NAMED), tmp_path / "plain", mini)
        edit_config(source, peft_type=kind)
    else:
        source = made
    features = why_not(mini, source, tmp_path / "out")
    assert not features or kind not in FOLDED, (features, made)
    if not features:
        require_same(mini, source, tmp_path / "out")


def why_not(base: LoadedModel, source: Path, out: Path) -> list[str]:
    """What makes an adapter unfit for folding; nothing when it was folded."""
    try:
        fold_adapter(base, source, out)
    except UnsupportedAdapter as error:
        return error.features or ["no reason given"]
    return []


@pytest.mark.parametrize("kind", ["IA3", "ROAD"])
def test_methods_that_change_biases_are_folded_where_there_are_none(
    load_shared: Callable[[str], LoadedModel], tmp_path: Path, kind: str
) -> None:
    flan = load_shared("blip2-flan-mini")
    sites = [f"language_model.decoder.block.0.layer.0.SelfAttention.{part}" for part in "qv"]
    options = {"target_modules": sites, **{key: value for key, value in OPTIONS[kind].items()}}
    source = write(PEFT_TYPE_TO_CONFIG_MAPPING[kind](**options), tmp_path / "source", flan)
    fold_adapter(flan, source, tmp_path / "out")
    assert torch.allclose(logits(flan, source), logits(flan, tmp_path / "out"), atol=1e-3)


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("untouched")
def test_a_rank_that_loses_too_much_is_refused_and_nothing_is_written(mini: LoadedModel, tmp_path: Path) -> None:
    source = write(LoraConfig(r=4, lora_alpha=8, target_modules=SITES, use_dora=True), tmp_path / "source", mini)
    with pytest.raises(UnsupportedAdapter, match="lorax-vlm exchange fold"):
        read_adapter_files(source, "a")
    with pytest.raises(UnsupportedAdapter, match="as plain LoRA of rank 2 its logits differ"):
        fold_adapter(mini, source, tmp_path / "folded", rank=2)
    assert not (tmp_path / "folded").exists()
    fold_adapter(mini, source, tmp_path / "coarse", rank=2, tolerance=10)
    assert read_adapter_files(tmp_path / "coarse", "coarse").ranks == [2]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "whole modules": ({"modules_to_save": ["language_projection"]}, "whole modules"),
    "a bias of its own": ({"lora_bias": True}, "is missing"),
    "tokens": ({"trainable_token_indices": [1]}, "embeddings"),
    "parameters": ({"target_parameters": ["x"]}, "no linear layer's"),
    "layers repeated": ({"layer_replication": [[0, 1]]}, "repeats layers"),
    "words that switch it on": ({"alora_invocation_tokens": [1]}, "behind certain words"),
    "an option that PEFT does not know": ({"new_switch": True}, "does not know it"),
    "a method that PEFT does not know": ({"peft_type": "NEWLORA"}, "does not know"),
    "a method that is no text": ({"peft_type": ["LORA"]}, "does not know"),
    "a rank of a billion": ({"r": 10**9}, "the limit is 1,024"),
    "a number of a thousand digits": ({"lora_alpha": 10**1000}, "lora_alpha"),
    "an initialisation without end": ({"init_lora_weights": "pissa_niter_99999999"}, "at most 100 steps"),
    "an initialisation that PEFT does not know": ({"init_lora_weights": "newest"}, "PEFT cannot put it on this base"),
    "a pattern that would not end": ({"target_modules": "([a-z_.0-9]+)+!"}, "name no module"),
    "no targets": ({"target_modules": None}, "which modules"),
    "nothing that is there": ({"target_modules": ["gone"]}, "name no module of this base"),
    "a convolution": (
        {"target_modules": ["vision_model.embeddings.patch_embedding"]},
        "belongs to no module|is missing",
    ),
}


@pytest.mark.timeout(20)
@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(("changes", "reason"), REFUSED.values(), ids=REFUSED)
def test_more_than_weights_is_refused(mini: LoadedModel, tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    source = write(LoraConfig(r=4, target_modules=NAMED), tmp_path / "source", mini)
    edit_config(source, **changes)
    with pytest.raises(UnsupportedAdapter, match=reason):
        fold_adapter(mini, source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("untouched")
def test_tensors_that_belong_nowhere_are_refused(mini: LoadedModel, tmp_path: Path) -> None:
    """PEFT ignores them without a word."""
    source = write(LoraConfig(r=4, target_modules=NAMED, use_dora=True), tmp_path / "source", mini)
    edit_weights(source, {"base_model.model.language_model.gone.lora_A.weight": torch.ones(4, 4)})
    with pytest.raises(UnsupportedAdapter, match="belongs to no module"):
        fold_adapter(mini, source, tmp_path / "out")


@pytest.mark.usefixtures("untouched")
def test_a_tensor_of_the_base_in_the_file_does_not_reach_it(mini: LoadedModel, tmp_path: Path) -> None:
    """PEFT copies such a tensor into the model that it is given."""
    source = write(LoraConfig(r=4, target_modules=NAMED), tmp_path / "source", mini)
    norm = "language_model.model.decoder.final_layer_norm.weight"
    edit_weights(source, {f"base_model.model.{norm}": torch.ones(160)})
    with pytest.raises(UnsupportedAdapter, match="final_layer_norm"):
        fold_adapter(mini, source, tmp_path / "out")


def test_what_changes_nothing_is_untrained(mini: LoadedModel, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        get_peft_model(copy.deepcopy(mini.model), LoraConfig(r=2, target_modules=NAMED)).save_pretrained(tmp_path / "a")
    with pytest.raises(UntrainedAdapter):
        fold_adapter(mini, tmp_path / "a", tmp_path / "out")


def test_folders_that_are_none(mini: LoadedModel, tmp_path: Path) -> None:
    def fold(folder: Path, match: str) -> None:
        with pytest.raises(DamagedAdapter, match=match):
            fold_adapter(mini, folder, tmp_path / "out")

    fold(tmp_path / "gone", "the folder does not exist")
    source = write(LoraConfig(r=2, target_modules=NAMED, use_dora=True), tmp_path / "a", mini)
    (source / "adapter_config.json").write_text("[")
    fold(source, "is not JSON")
    source = write(LoraConfig(r=2, target_modules=NAMED, use_dora=True), tmp_path / "b", mini)
    edit_weights(source, {f"base_model.model.{NAMED[0]}.lora_A.weight": torch.full((2, 160), torch.nan)})
    fold(source, "not all of its values are finite")
    weights = source / "adapter_model.safetensors"
    torch.save({"a": torch.ones(1)}, source / "adapter_model.bin")
    weights.unlink()
    fold(source, "is a pickle")
    (source / "adapter_model.bin").unlink()
    weights.write_text("version https://git-lfs.github.com/spec/v1\n")
    fold(source, "git lfs pull")


def test_odd_arguments(mini: LoadedModel, tmp_path: Path) -> None:
    source = write(LoraConfig(r=2, target_modules=NAMED, use_dora=True), tmp_path / "a", mini)
    for options in (
        {"rank": 0},
        {"rank": -3},
        {"rank": 2.5},
        {"rank": True},
        {"rank": 2000},
        {"tolerance": float("nan")},
    ):
        with pytest.raises(UsageError):
            fold_adapter(mini, source, tmp_path / "out", **options)
    (tmp_path / "out").mkdir()
    fold_adapter(mini, source, tmp_path / "out")
    with pytest.raises(AdapterExists):
        fold_adapter(mini, source, tmp_path / "out")
    half = load_model("blip2-opt-mini", dtype="bfloat16")
    with pytest.raises(UnsupportedAdapter, match="dtype='float32'"):
        fold_adapter(half, source, tmp_path / "other")


def test_a_base_in_use_is_folded_on_and_stays_in_use(mini: LoadedModel, tmp_path: Path) -> None:
    source = write(LoraConfig(r=2, target_modules=NAMED, init_lora_weights="olora"), tmp_path / "a", mini)
    attached = AttachedAdapters(mini)
    attached.attach("mine", write_random_adapter(mini, tmp_path / "mine"))
    image = make_scene(7).image
    before = attached.answer_logits("mine", image, PROMPTS[0])
    fold_adapter(mini, source, tmp_path / "out")
    assert torch.equal(attached.answer_logits("mine", image, PROMPTS[0]), before)
    attached.detach_all()
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["init_lora_weights"] is True
