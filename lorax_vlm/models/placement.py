"""Where a model runs and in what precision: decided once, by rules that can be read and tested without a GPU. No torch.

CUDA: 4-bit NF4 unless asked otherwise. CPU: bfloat16 where the processor computes it, else float32. Miniatures:
always float32, unquantised.
"""

from dataclasses import dataclass
from typing import Literal

from lorax_vlm.errors import OutOfMemoryForecast, UsageError
from lorax_vlm.models.catalog import CATALOG, CatalogEntry
from lorax_vlm.models.spec import ARCHITECTURES

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]
Quantization = Literal["auto", "none", "4bit", "8bit"]

MINIATURE_DTYPE = "float32"
_BYTES_PER_WEIGHT = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
# Activations, the image encoder's attention and the allocator's slack, beside the weights.
_WORKING_BYTES = 700_000_000


@dataclass(frozen=True)
class Hardware:
    """What the machine has."""

    free_ram_bytes: int
    cpu_bfloat16: bool = False
    cuda_device: str | None = None
    """Name of the CUDA device, None without one."""
    free_cuda_bytes: int = 0
    cuda_bfloat16: bool = False


@dataclass(frozen=True)
class Placement:
    """The decision, with its reason."""

    device: str
    dtype: str
    quantization: Literal["none", "4bit", "8bit"]
    needed_bytes: int | None
    """Estimate of memory on the device; None when the number of parameters is not known before loading."""
    reason: str


def plan_placement(
    entry: CatalogEntry,
    hardware: Hardware,
    device: Device = "auto",
    dtype: Precision = "auto",
    quantization: Quantization = "auto",
) -> Placement:
    """Decide device, precision and quantisation for a checkpoint.

    Raises:
        UsageError: An option is unknown, CUDA is asked for but absent, or a miniature is to be quantised in 8 bits.
    """
    _require_choice("device", device, ("auto", "cpu", "cuda"))
    _require_choice("dtype", dtype, ("auto", *_BYTES_PER_WEIGHT))
    _require_choice("quantize", quantization, ("auto", "none", "4bit", "8bit"))
    if device == "cuda" and hardware.cuda_device is None:
        raise UsageError("device='cuda' was asked for, but this machine has no CUDA device. Use device='cpu'.")
    chosen_device = device if device != "auto" else "cuda" if hardware.cuda_device and not entry.miniature else "cpu"
    bfloat16 = hardware.cuda_bfloat16 if chosen_device == "cuda" else hardware.cpu_bfloat16
    row = ARCHITECTURES.get(entry.family)
    float16 = row is None or row.float16
    if entry.miniature:
        default_dtype, reason = MINIATURE_DTYPE, f"miniatures always compute in {MINIATURE_DTYPE}"
    elif chosen_device == "cuda":
        without = "float16" if float16 else "float32"
        default_dtype, reason = (
            ("bfloat16", "bfloat16 on this GPU") if bfloat16 else (without, "a GPU without bfloat16")
        )
    else:
        default_dtype = "bfloat16" if bfloat16 else "float32"
        reason = f"this processor {'computes' if bfloat16 else 'does not compute'} bfloat16"
    chosen_dtype = default_dtype if dtype == "auto" else dtype
    if chosen_device == "cpu" and chosen_dtype == "float16":
        raise UsageError("float16 overflows and is slow on a CPU. Use dtype='bfloat16' or dtype='float32'.")
    if chosen_dtype == "float16" and not float16:
        raise UsageError(f"{entry.name} overflows in float16. Use dtype='bfloat16' or dtype='float32'.")
    quantized: Literal["none", "4bit", "8bit"] = "none"
    if quantization != "auto":
        quantized = quantization
    elif chosen_device == "cuda" and not entry.miniature and dtype == "auto":
        quantized, reason = "4bit", "on CUDA the default is 4-bit NF4; ask for --quantize none for 16 bits"
    if dtype != "auto":
        reason = f"dtype {dtype} was asked for"
    return Placement(chosen_device, chosen_dtype, quantized, _needed_bytes(entry, chosen_dtype, quantized), reason)


def _needed_bytes(entry: CatalogEntry, dtype: str, quantization: str) -> int | None:
    if entry.parameters is None:
        return None
    per_weight = _BYTES_PER_WEIGHT[dtype]
    if quantization == "none":
        weights = entry.parameters * per_weight
    else:
        quantized = {"4bit": 0.52, "8bit": 1.03}[quantization]
        row = ARCHITECTURES.get(entry.family)
        share = row.quantized_share if row is not None else 0.0
        weights = entry.parameters * (share * quantized + (1 - share) * per_weight)
    return int(weights) + (0 if entry.miniature else _WORKING_BYTES)


def require_memory(entry: CatalogEntry, placement: Placement, hardware: Hardware) -> None:
    """Raise ``OutOfMemoryForecast`` when the model would not fit; unknown sizes pass."""
    free = hardware.free_cuda_bytes if placement.device == "cuda" else hardware.free_ram_bytes
    if placement.needed_bytes is not None and placement.needed_bytes > free:
        smallest = min((row for row in CATALOG if not row.miniature), key=lambda row: row.parameters or 0)
        needed = 4 * (smallest.parameters or 0)
        fits = needed + _WORKING_BYTES <= free
        smaller = f"{smallest.name}, which needs {needed / 1e9:.1f} GB, " if fits else ""
        hint = f"Try --quantize 4bit, {smaller}or a miniature, such as blip2-opt-mini."
        raise OutOfMemoryForecast(entry.name, placement.needed_bytes, free, placement.device, hint)


def _require_choice(option: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UsageError(f"Unknown {option} {value!r}. Choices: {', '.join(choices)}.")
