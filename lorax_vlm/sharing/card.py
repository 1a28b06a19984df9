"""The model card of an adapter for the Hugging Face Hub, made of its manifest alone. No torch."""

import json
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from lorax_vlm.adapters.manifest import Manifest

_PIPELINES = {"caption": "image-to-text", "instruct": "image-text-to-text"}
_LICENCES = {"MIT": "mit", "Apache-2.0": "apache-2.0", "BSD-3-Clause": "bsd-3-clause"}


def write_card(manifest: Manifest) -> str:
    """``README.md`` with the hub's metadata: base and tags, by which the hub lists it, and its measured figures."""
    base, mode = manifest.base, manifest.skill.mode if manifest.skill else ""
    task, licence = _PIPELINES.get(mode, "visual-question-answering"), _LICENCES.get(manifest.licence, "other")
    facts = ModelCardData(
        library_name="peft",
        base_model=base.name if base else None,
        base_model_relation="adapter" if base else None,
        pipeline_tag=task,
        license=licence,
        license_name=manifest.licence if licence == "other" and manifest.licence else None,
        tags=["lora", "lorax-vlm", *([mode] if mode else []), *([f"base_model:adapter:{base.name}"] if base else [])],
        model_name=manifest.name,
        eval_results=[
            EvalResult(
                task_type=task,
                dataset_type="own",
                dataset_name=measured.data,
                metric_type=measured.metric,
                metric_value=measured.value,
                metric_args={"low": measured.low, "high": measured.high, "count": measured.count},
            )
            for measured in manifest.metrics
        ]
        or None,
    )
    return f"---\n{facts.to_yaml()}\n---\n\n{_body(manifest)}"


def _body(manifest: Manifest) -> str:
    base = manifest.base
    sites = ", ".join(f"{count} in {component}" for component, count in manifest.sites.items()) or "unknown"
    lines = [
        f"# {manifest.name}",
        "",
        f"A LoRA adapter for {base.name if base else 'an unknown base'}: {manifest.skill or 'it does not say what for'}"
        + ("." if manifest.trained else ". **Untrained**: it changes nothing yet."),
        "",
        "| | |",
        "|---|---|",
        f"| rank | {manifest.rank} |",
        f"| adapted modules | {sites} |",
        f"| prompt | `{manifest.prompt or '(none)'}` |",
        f"| data | {manifest.training.get('data', 'unknown')} |",
        f"| licence | {manifest.licence or 'unknown'} |",
        f"| created | {manifest.created or 'unknown'} |",
    ]
    if manifest.metrics:
        lines += ["", "| measured | on | value | 95 % interval |", "|---|---|---|---|"]
        lines += [f"| {m.metric} | {m.data} | {m.value:.3f} | {m.low:.3f} to {m.high:.3f} |" for m in manifest.metrics]
    if manifest.lineage:
        lines += ["", "Made from:", ""]
        lines += [f"- {p.name} ({p.method}) `{p.manifest[:12]}` {_parameters(p.parameters)}" for p in manifest.lineage]
    lines += [
        "",
        "A plain PEFT directory. `exchange.json` names every file by its SHA-256 and says to which weights of the base",
        "the adapter belongs; `lorax-vlm` checks both before it is used, plain PEFT neither.",
        "",
    ]
    return "\n".join(lines)


def _parameters(parameters: dict[str, Any]) -> str:
    return f"`{json.dumps(parameters, sort_keys=True)}`" if parameters else ""
