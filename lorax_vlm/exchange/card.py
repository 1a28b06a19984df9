"""The model card of an adapter for the Hugging Face Hub, made of its manifest alone. No torch."""

import json
from typing import Any

import yaml

from lorax_vlm.adapters.manifest import Manifest

_PIPELINES = {"caption": "image-to-text", "instruct": "image-text-to-text"}
_LICENCES = {"MIT": "mit", "Apache-2.0": "apache-2.0", "BSD-3-Clause": "bsd-3-clause"}


def write_card(manifest: Manifest) -> str:
    """``README.md`` with the hub's metadata: library, base model and tags, by which the hub lists it under its base."""
    base = manifest.base
    facts: dict[str, Any] = {"library_name": "peft"}
    if base is not None:
        facts |= {"base_model": base.name, "base_model_relation": "adapter"}
    facts |= {
        "pipeline_tag": _PIPELINES.get(manifest.skill.mode if manifest.skill else "", "visual-question-answering"),
        "license": _LICENCES.get(manifest.licence, "other"),
    }
    if facts["license"] == "other" and manifest.licence:
        facts["license_name"] = manifest.licence
    mode = [manifest.skill.mode] if manifest.skill else []
    tags = ["lora", "lorax-vlm", *mode, *([f"base_model:adapter:{base.name}"] if base else [])]
    facts["tags"] = tags
    return f"---\n{yaml.safe_dump(facts, sort_keys=False, allow_unicode=True)}---\n\n{_body(manifest)}"


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
