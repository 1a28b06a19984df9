"""Device, precision and quantisation, decided without a GPU in sight."""

import pytest

from lorax_vlm.errors import OutOfMemoryForecast
from lorax_vlm.models.catalog import get_model_entry
from lorax_vlm.models.placement import Hardware, plan_placement, require_memory

FULL, MINI = get_model_entry("blip2_opt"), get_model_entry("blip2-opt-mini")
OLD_CPU, NEW_CPU = Hardware(64 * 10**9), Hardware(64 * 10**9, cpu_bfloat16=True)
GPU = Hardware(64 * 10**9, True, "H200", 140 * 10**9, True)
OLD_GPU = Hardware(64 * 10**9, True, "T4", 15 * 10**9, False)


@pytest.mark.parametrize(
    ("entry", "hardware", "options", "expected"),
    [
        (FULL, OLD_CPU, {}, ("cpu", "float32", "none")),
        (FULL, NEW_CPU, {}, ("cpu", "bfloat16", "none")),
        (FULL, NEW_CPU, {"dtype": "float32"}, ("cpu", "float32", "none")),
        (FULL, NEW_CPU, {"quantization": "4bit"}, ("cpu", "bfloat16", "4bit")),
        (FULL, GPU, {}, ("cuda", "bfloat16", "4bit")),
        (FULL, GPU, {"quantization": "none"}, ("cuda", "bfloat16", "none")),
        (FULL, GPU, {"dtype": "float16"}, ("cuda", "float16", "none")),
        (FULL, GPU, {"device": "cpu"}, ("cpu", "bfloat16", "none")),
        (FULL, OLD_GPU, {}, ("cuda", "float16", "4bit")),
        (MINI, GPU, {}, ("cpu", "float32", "none")),
        (MINI, GPU, {"device": "cuda"}, ("cuda", "float32", "none")),
        (MINI, NEW_CPU, {}, ("cpu", "float32", "none")),
    ],
)
def test_table(entry, hardware, options, expected) -> None:
    placement = plan_placement(entry, hardware, **options)
    assert (placement.device, placement.dtype, placement.quantization) == expected
    assert placement.reason


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cuda"}, "no CUDA device"),
        ({"device": "tpu"}, "Choices: auto, cpu, cuda"),
        ({"dtype": "float8"}, "Choices: auto, float32"),
        ({"quantization": "2bit"}, "Choices: auto, none"),
        ({"dtype": "float16"}, "overflows"),
    ],
)
def test_impossible_wishes(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        plan_placement(FULL, NEW_CPU, **options)


def test_memory_in_every_precision() -> None:
    needed = {
        precision: plan_placement(FULL, NEW_CPU, dtype=precision).needed_bytes for precision in ("float32", "bfloat16")
    }
    needed["4bit"] = plan_placement(FULL, NEW_CPU, quantization="4bit").needed_bytes
    # 3.74 B parameters: 15.0 GB in 32 bits, 7.5 in 16; in 4 bits the vision encoder and Q-Former stay in 16.
    assert needed["float32"] == pytest.approx(15.7e9, rel=0.02)
    assert needed["bfloat16"] == pytest.approx(8.2e9, rel=0.02)
    assert needed["4bit"] == pytest.approx(4.4e9, rel=0.05)


def test_what_does_not_fit_is_said_with_figures() -> None:
    small = Hardware(5 * 10**9, True)
    with pytest.raises(OutOfMemoryForecast, match=r"8\.2 GB on cpu, 5\.0 GB are free.*--quantize 4bit"):
        require_memory(FULL, plan_placement(FULL, small), small)
    require_memory(FULL, plan_placement(FULL, small, quantization="4bit"), small)
    unknown = get_model_entry("someone/unlisted")
    assert plan_placement(unknown, small).needed_bytes is None
    require_memory(unknown, plan_placement(unknown, small), small)
