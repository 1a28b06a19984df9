"""The parts a vision-language model is made of, by module name. No torch."""

from collections.abc import Iterable

_COMPONENT_OF_ROOT = {
    "vision_model": "vision",
    "qformer": "qformer",
    "query_tokens": "qformer",
    "language_projection": "projection",
    "language_model": "lm",
    # ViLT has one encoder for question and image, and a head over its answers.
    "vilt": "encoder",
    "classifier": "head",
}
IMAGE_PATH_COMPONENTS = frozenset({"vision", "qformer", "projection"})


def component_of(name: str) -> str | None:
    """The component of a module or parameter name, None when it belongs to no known one.

    >>> component_of("language_model.model.decoder.layers.0.fc1")
    'lm'
    """
    return _COMPONENT_OF_ROOT.get(name.split(".", 1)[0])


def group_by_component(names: Iterable[str]) -> dict[str, list[str]]:
    """Names of modules or parameters by component; what belongs to no known one is ``other``.

    >>> group_by_component(["language_model.lm_head", "qformer.layernorm"])
    {'lm': ['language_model.lm_head'], 'qformer': ['qformer.layernorm']}
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(component_of(name) or "other", []).append(name)
    return groups
