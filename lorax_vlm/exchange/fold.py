"""Turning what is not plain LoRA (DoRA, LoHa, PiSSA, ...) into plain LoRA, with the error said.

What a method does to a linear layer is read off the layer itself: PEFT merges it into the weight, and the difference to
the base's own weight is brought back to a low rank. So it does not matter which method it was, only that it changes
weights and nothing else. Some methods change the base when they begin, so PEFT works on a copy of the module tree whose
written tensors are its own; the base answers others meanwhile and stays what it was. The result is accepted when the
logits of the whole model agree: PEFT's, and those of the plain LoRA on the untouched base.
"""

import hashlib
import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from lorax_vlm.adapters.factors import Update
from lorax_vlm.adapters.files import only_our_errors
from lorax_vlm.adapters.pair import WEIGHTS_FILE, read_pair
from lorax_vlm.adapters.peft_config import CONFIG_FILE, MAX_RANK
from lorax_vlm.data.scenes import make_scene
from lorax_vlm.errors import (
    AdapterExists,
    CheckpointError,
    DamagedAdapter,
    LoraxError,
    UnsupportedAdapter,
    UntrainedAdapter,
    UsageError,
)
from lorax_vlm.exchange.files import write_updates
from lorax_vlm.exchange.fold_config import method_of, named_config
from lorax_vlm.foreign import quoted
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.models.tensor_files import read_header
from lorax_vlm.paths import naming
from lorax_vlm.runtime.attached import AttachedAdapters
from lorax_vlm.runtime.canary import QUESTION, SCENE

LOGITS_TOLERANCE = 1e-3
"""Largest change of any logit, relative to the change that the adapter makes."""
_WEIGHT_TOLERANCES = (1e-4, 1e-7)
"""What is left out of an update, relative to its norm, when the rank is free; the second where that is too much."""
_QUESTIONS = (QUESTION, "What color is the background?", "Is there a circle?")
_SLOT = "folded"
_SHARED = re.compile(r"base_model\.model\..*\.vblora_vector_bank\.")
"""References of VB-LoRA's layers to the one bank, which PEFT does not set."""
_SHOWN = 3


@dataclass(frozen=True)
class FoldReport:
    """What folding did."""

    folder: Path
    method: str
    ranks: tuple[int, ...]
    """The distinct ranks of the result, ascending."""
    weight_error: float
    """Largest of all sites, relative to the update's norm."""
    logits_error: float
    """See ``LOGITS_TOLERANCE``."""


@torch.no_grad()
def fold_adapter(
    base: LoadedModel, folder: Path, out: Path, *, rank: int | None = None, tolerance: float = LOGITS_TOLERANCE
) -> FoldReport:
    """Write a plain LoRA directory that does what a PEFT directory of another method does.

    Args:
        base: The base it was trained on, in float32. Nothing of it is changed, and others may use it meanwhile.
        folder: A PEFT directory that changes linear layers.
        out: Where the plain one is written; nothing may be there.
        rank: Most ranks per site. None: as many as an exact result needs.
        tolerance: Largest accepted change of logits; see ``LOGITS_TOLERANCE``.

    Raises:
        DamagedAdapter: The folder cannot be read, or holds no safetensors.
        UnsupportedAdapter: It changes more than linear weights, or the result would not do the same.
        UntrainedAdapter: It changes nothing.
        AdapterExists: There is something at ``out``.
        UsageError: ``rank`` or ``tolerance`` is no such number.
        PathError: The result cannot be written.
    """
    if rank is not None and not (type(rank) is int and 1 <= rank <= MAX_RANK):
        raise UsageError(f"rank is {quoted(rank)}, expected a whole number from 1 to {MAX_RANK}.")
    if not tolerance > 0:
        raise UsageError(f"tolerance is {quoted(tolerance)}, expected a number above 0.")
    with naming(out):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise AdapterExists(folder.name, str(out), taken=True)
    with only_our_errors(folder.name, folder):
        config, data = _read(folder)
        plain = base.plain_copy()
        named = _require_foldable(base, plain.model, config, folder.name)
    before = _checksums(plain.model)
    alone, method = _logits(plain), method_of(config)
    for lost in _WEIGHT_TOLERANCES if rank is None else _WEIGHT_TOLERANCES[:1]:
        updates, original = _ask_peft(plain, named, data, folder.name, _Kept(rank or MAX_RANK, lost))
        folded = _ask_plain(plain, {site: update for site, (update, _) in updates.items()})
        _require_untouched(before, plain.model, base.name)
        effect = float((original - alone).abs().max())
        if effect == 0:
            raise UntrainedAdapter(folder.name)
        error = float((folded - original).abs().max()) / effect
        if error <= tolerance:
            _require_repeatable(plain, named, data, folder.name, original, tolerance * effect)
            break
    else:
        reason = f"as plain LoRA of rank {rank or MAX_RANK} its logits differ by {error:.1e} of its effect"
        raise UnsupportedAdapter(folder.name, [f"{method}: {reason}; {tolerance:.0e} are allowed"])
    with naming(out):
        write_updates(out, {site: update for site, (update, _) in updates.items()}, base.entry.identity)
    ranks = tuple(sorted({update.rank for update, _ in updates.values()}))
    return FoldReport(out, method, ranks, max(lost for _, lost in updates.values()), error)


@dataclass(frozen=True)
class _Kept:
    """How much of an update is kept."""

    rank: int
    """At most."""
    lost: float
    """See ``_WEIGHT_TOLERANCES``."""


# --- what is given to PEFT --------------------------------------------------------------------------------------------


def _read(folder: Path) -> tuple[dict[str, Any], bytes]:
    """Configuration and weights; a pickle is not opened, and what is no number is refused."""
    config, data, tensors = read_pair(folder)
    problems = [
        f"{quoted(tensor.name)}: not all of its values are finite"
        for tensor in tensors
        if tensor.is_float and not all(np.isfinite(values).all() for values in tensor.chunks())
    ]
    if problems:
        raise DamagedAdapter(folder.name, str(folder), problems)
    return config, data


def _require_foldable(base: LoadedModel, model: Any, config: Mapping[str, Any], adapter: str) -> dict[str, Any]:
    """The configuration with every module by its name."""
    modules = [name for name, _ in model.named_modules() if name]
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    named, problems = named_config(config, modules, linear)
    if base.placement.quantization != "none" or base.compute_dtype != torch.float32:
        kind = base.placement.dtype if base.placement.quantization == "none" else base.placement.quantization
        problems.append(f"the base is in {kind}: weights merged into it would be rounded; load it with dtype='float32'")
    if problems:
        raise UnsupportedAdapter(adapter, problems)
    return named


def _ask_peft(
    plain: LoadedModel, config: Mapping[str, Any], data: bytes, adapter: str, kept: _Kept | None, seed: int = 0
) -> tuple[dict[str, tuple[Update, float]], Tensor]:
    """The update of every site with the share of it that is lost, and the logits that PEFT gives.

    Args:
        plain: Plain; not changed.
        config: From ``named_config``.
        data: The safetensors file.
        adapter: For errors.
        kept: Of each update. None: no updates are read.
        seed: Of whatever PEFT draws at random.
    """
    twin = plain.plain_copy()
    written = _written_tensors(twin.model, config, data)
    _make_own(twin.model, written)
    with (
        TemporaryDirectory(prefix="lorax-fold-") as scratch,
        warnings.catch_warnings(),
        torch.random.fork_rng(devices=[]),
    ):
        warnings.simplefilter("ignore")
        (Path(scratch) / CONFIG_FILE).write_text(json.dumps(config), encoding="utf-8")
        (Path(scratch) / WEIGHTS_FILE).write_bytes(data)
        torch.manual_seed(seed)
        try:
            kind = PEFT_TYPE_TO_CONFIG_MAPPING[config["peft_type"]].from_pretrained(scratch)
            kind.inference_mode = True
            model = PeftModel(twin.model, kind, adapter_name=_SLOT)
            found = model.load_adapter(scratch, _SLOT, torch_device=str(twin.device))
            model.eval()
            missing = [key for key in found.missing_keys if not _SHARED.search(key)]
            problems = [f"{key} is missing" for key in missing[:_SHOWN]]
            surplus = [quoted(key, 200)[1:-1] for key in found.unexpected_keys[:_SHOWN]]
            problems += [f"{key} belongs to no module that it changes" for key in surplus]
            problems += _other_changes(twin.model, plain.model)
            if problems:
                raise UnsupportedAdapter(adapter, problems)
            original = _logits(twin)
            layers = {name: part for name, part in twin.model.named_modules() if isinstance(part, BaseTunerLayer)}
            updates = {
                name: _read_update(name, layer, plain.model.get_submodule(name), kept, adapter)
                for name, layer in layers.items()
                if kept is not None
            }
        except (LoraxError, MemoryError):
            raise
        except Exception as error:  # of a configuration that is anybody's, in a library
            reason = quoted(str(error), 300)[1:-1]
            problem = f"{method_of(config)}: PEFT cannot put it on this base: {type(error).__name__}: {reason}"
            raise UnsupportedAdapter(adapter, [problem]) from error
    return updates, original


def _require_repeatable(
    plain: LoadedModel, config: Mapping[str, Any], data: bytes, adapter: str, original: Tensor, allowed: float
) -> None:
    """Raise when PEFT loads another thing each time: the method begins at random, and the file does not say how."""
    _, again = _ask_peft(plain, config, data, adapter, None, seed=1)
    if not float((again - original).abs().max()) <= allowed:
        start = config.get("init_lora_weights")
        how = f" ({start})" if isinstance(start, str) else ""
        reason = f"it began with what was drawn at random{how} and is not in the file: PEFT loads another one each time"
        raise UnsupportedAdapter(adapter, [f"{method_of(config)}: {reason}"])


def _written_tensors(model: Any, config: Mapping[str, Any], data: bytes) -> set[str]:
    """Names of the base's parameters and buffers that PEFT may write into."""
    named = {tensor.name.removeprefix("base_model.model.") for tensor in read_header(data)[0]}
    chosen = tuple(f"{site}." for site in config["target_modules"])
    owned = [name for name, _ in (*model.named_parameters(), *model.named_buffers())]
    return {name for name in owned if name.startswith(chosen) or name in named}


def _make_own(model: Any, written: set[str]) -> None:
    """Give a model parameters of its own: copies of those that are written to, the others on the same memory."""
    made: dict[int, nn.Parameter] = {}
    copied = {id(tensor) for name, tensor in (*model.named_parameters(), *model.named_buffers()) if name in written}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            if id(parameter) not in made:
                values = parameter.detach().clone() if id(parameter) in copied else parameter.detach()
                made[id(parameter)] = nn.Parameter(values, requires_grad=False)
            module._parameters[name] = made[id(parameter)]
        for name, buffer in module._buffers.items():
            module._buffers[name] = buffer.clone() if buffer is not None and id(buffer) in copied else buffer


# --- what PEFT made of it ---------------------------------------------------------------------------------------------


def _other_changes(model: Any, plain: Any) -> list[str]:
    """What is other than in the plain base, but for the weights of linear layers that PEFT's layers stand for."""
    theirs = {name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    problems = []
    for name, module in plain.named_modules():
        found = model.get_submodule(name) if name else model
        adapted = name in theirs
        inner = found.get_base_layer() if adapted else found
        if type(inner) is not type(module) and module is not plain:
            problems.append(f"{name}: it puts something else in its place")
        elif adapted and type(module) is not nn.Linear:
            problems.append(f"{name}: it is no linear layer")
        else:
            own = sorted({*module._parameters, *module._buffers} - ({"weight"} if adapted else set()))
            changed = [part for part in own if not _same(inner, module, part)]
            problems += [f"{name}.{part}: it changes it, which LoRA cannot" for part in changed]
    return problems[:_SHOWN]


def _same(one: Any, other: Any, part: str) -> bool:
    first, second = getattr(one, part), getattr(other, part)
    if first is None or second is None:
        return first is second
    return first.data_ptr() == second.data_ptr() or torch.equal(first, second)


def _read_update(name: str, layer: Any, plain: nn.Linear, kept: _Kept, adapter: str) -> tuple[Update, float]:
    """What a layer adds to the base's weight, at low rank, and the share of it that is lost."""
    weight, bias = _merged(layer)
    same = bias is plain.bias if bias is None or plain.bias is None else torch.equal(bias, plain.bias)
    if not same:
        raise UnsupportedAdapter(adapter, [f"{name}: it changes the bias, which LoRA cannot"])
    change = (weight.double() - plain.weight.double()).cpu().numpy()
    u, s, vt = np.linalg.svd(change, full_matrices=False)
    total = float(np.linalg.norm(s))
    if not total:
        return Update(np.zeros((1, change.shape[1])), np.zeros((change.shape[0], 1))), 0.0
    lost = np.sqrt(np.maximum(total**2 - np.cumsum(s**2), 0)) / total
    enough = int(np.searchsorted(-lost, -kept.lost) + 1)
    rank = max(1, min(kept.rank, enough, len(s)))
    return Update.of_singular(u[:, :rank], s[:rank], vt[:rank]), float(lost[rank - 1])


def _merged(layer: Any) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of the one linear layer that does what a layer of PEFT does."""
    inner = layer.get_base_layer()
    try:
        layer.merge(safe_merge=True)
        return inner.weight, inner.bias
    except NotImplementedError:  # read off what it does to each input
        inputs = torch.eye(inner.in_features, device=inner.weight.device, dtype=inner.weight.dtype)
        nothing = layer(torch.zeros_like(inputs[:1]))
        if inner.bias is None and bool(nothing.any()):
            return inner.weight, nothing[0]
        return (layer(inputs) - nothing).T, inner.bias if inner.bias is None else nothing[0]


def _ask_plain(plain: LoadedModel, updates: Mapping[str, Update]) -> Tensor:
    """Logits with some updates as plain LoRA."""
    with TemporaryDirectory(prefix="lorax-fold-") as scratch:
        attached = AttachedAdapters(plain)
        attached.attach(_SLOT, write_updates(Path(scratch), updates, ""))
        with attached.using(_SLOT):
            logits = _logits(plain)
        attached.detach_all()
    return logits


def _logits(base: LoadedModel) -> Tensor:
    prompts = [base.entry.question_prompt(question) for question in _QUESTIONS]
    images = [make_scene(SCENE + number).image for number in range(len(prompts))]
    features = base.family.encode_images(base.model, base.family.prepare(images), prompts)
    return base.family.answer_logits(base.model, features, prompts)


def _checksums(model: Any) -> dict[str, str]:
    """SHA-256 of every tensor, bit for bit."""
    found = {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        found[name] = hashlib.sha256(values.numpy().data).hexdigest()
    return found


def _require_untouched(before: Mapping[str, str], model: Any, base: str) -> None:
    after = _checksums(model)
    if changed := [name for name, digest in before.items() if after.get(name) != digest]:
        shown = ", ".join(changed[:_SHOWN])
        raise CheckpointError(base, [f"PEFT wrote into {len(changed)} of its tensors ({shown}); load it again"])
