"""Scenes for moving adapters between the miniatures: none that adapters are trained on, and none they are tested on."""

from lorax_vlm.adapters.manifest import Manifest
from lorax_vlm.data.examples import Example
from lorax_vlm.data.world.examples import scene_captions, scene_questions
from lorax_vlm.data.world.skills import kinds_taught, require_scenes, skill_examples, without_targets
from lorax_vlm.errors import UsageError
from lorax_vlm.evaluation.seen import KNOWN_BY, Identity, identities_of
from lorax_vlm.exchange.transfer_data import TransferData
from lorax_vlm.models.catalog import CATALOG, CatalogEntry
from lorax_vlm.skills import Skill
from lorax_vlm.training.config import TrainConfig

UNSEEN_FROM = 20_000
"""First scene of its split that a transfer looks at; adapters are trained on those before it."""
MOST_UNLABELLED, DEVELOPMENT, OFF_TASK = 2000, 200, 100
_KNOWN = "color"
"""A type of question that every miniature can answer."""


def _drawn_skill(manifest: Manifest) -> Skill:
    """What an adapter is for, where drawn scenes ask for the same."""
    if KNOWN_BY in manifest.training and Identity.DRAWING not in identities_of(manifest):
        why = "was trained on pictures of yours, so drawn scenes would say nothing about it"
    elif manifest.skill is None:
        why = "does not say what it is for, so nothing can be asked of it"
    else:
        try:
            return require_scenes(manifest.skill)
        except UsageError:
            why = f"is for {manifest.skill}, which drawn scenes do not ask for"
    raise UsageError(
        f"Adapter {manifest.name!r} {why}. Give it pictures of its kind that nobody labelled: --unlabelled FOLDER "
        "(unlabelled=)."
    )


def drawn_images(manifest: Manifest, target: CatalogEntry) -> int:
    """How many unlabelled scenes a transfer draws where it is given none: between miniatures, for skills of theirs."""
    base = manifest.base.name if manifest.base is not None else None
    if not target.miniature or not any(entry.miniature and entry.identity == base for entry in CATALOG):
        return 0
    try:
        _drawn_skill(manifest)
    except UsageError:
        return 0
    return MOST_UNLABELLED


def scene_transfer_data(manifest: Manifest, *, captions: bool, config: TrainConfig) -> TransferData:
    """Unlabelled, development and off-task scenes for an adapter, of its own skill.

    Args:
        manifest: Of the adapter.
        captions: Whether the target can write captions.
        config: Of the distillation; no more scenes are taken than it can look at.

    Raises:
        UsageError: Scenes say nothing about it.
    """
    skill = _drawn_skill(manifest)
    seen = round(1.25 * config.max_steps * config.batch_size * config.gradient_accumulation)
    return TransferData(
        unlabelled=without_targets(skill_examples(skill, "train", min(MOST_UNLABELLED, seen), start=UNSEEN_FROM)),
        development=skill_examples(skill, "validation", DEVELOPMENT, start=UNSEEN_FROM),
        off_task=_other_examples(skill, captions=captions),
    )


def _other_examples(skill: Skill, *, captions: bool) -> list[Example]:
    """Of what a miniature can do without an adapter, something that the skill is not; none where it is all of it."""
    if captions and not skill.writes:
        return scene_captions("plain", "validation", OFF_TASK, UNSEEN_FROM)
    if _KNOWN in kinds_taught(skill):
        return []
    return scene_questions(_KNOWN, "validation", OFF_TASK, start=UNSEEN_FROM)
