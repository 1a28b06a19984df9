"""The parts a vision-language model is made of, by module name. No torch."""

from collections.abc import Iterable

from lorax_vlm.models.spec import component_beginnings

IMAGE_PATH_COMPONENTS = frozenset({"vision", "qformer", "projection"})


def component_of(name: str) -> str | None:
    """The component of a module or parameter name, None when it belongs to no known one.

    >>> component_of("language_model.model.decoder.layers.0.fc1")
    'lm'
    """
    found = [pair for pair in component_beginnings() if name == pair[0] or name.startswith(f"{pair[0]}.")]
    return max(found, key=lambda pair: len(pair[0]))[1] if found else None


def group_by_component(names: Iterable[str]) -> dict[str, list[str]]:
    """Names of modules or parameters by component; what belongs to no known one is ``other``.

    >>> group_by_component(["language_model.lm_head", "qformer.layernorm"])
    {'lm': ['language_model.lm_head'], 'qformer': ['qformer.layernorm']}
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(component_of(name) or "other", []).append(name)
    return groups
