"""The parts a vision-language model is made of, by module name. No torch."""

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
