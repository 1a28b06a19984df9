"""Scenes for moving adapters between the miniatures: none that adapters are trained on, and none they are tested on."""

from lorax_vlm.adapters.manifest import Manifest
from lorax_vlm.data.examples import Example
from lorax_vlm.data.scene_examples import scene_captions, scene_questions
from lorax_vlm.data.scene_tasks import WRITING_TASKS, task_examples, without_targets
from lorax_vlm.errors import UsageError
from lorax_vlm.evaluation.seen import KNOWN_BY, Identity, identities_of
from lorax_vlm.exchange.transfer_data import TransferData
from lorax_vlm.training.config import TrainConfig

UNSEEN_FROM = 20_000
"""First scene of its split that a transfer looks at; adapters are trained on those before it."""
MOST_UNLABELLED, DEVELOPMENT, OFF_TASK = 2000, 200, 100


def _require_drawn(manifest: Manifest) -> None:
    if KNOWN_BY in manifest.training and Identity.DRAWING not in identities_of(manifest):
        raise UsageError(
            f"Adapter {manifest.name!r} was trained on pictures of yours, so drawn scenes would say nothing about it. "
            "Give it pictures of that kind that nobody labelled: --unlabelled FOLDER (unlabelled=)."
        )


def scene_transfer_data(manifest: Manifest, *, captions: bool, config: TrainConfig) -> TransferData:
    """Unlabelled, development and off-task scenes for an adapter.

    Args:
        manifest: Of the adapter.
        captions: Whether the target can write captions.
        config: Of the distillation; no more scenes are taken than it can look at.

    Raises:
        UsageError: It was trained on somebody's pictures, about which scenes say nothing.
    """
    _require_drawn(manifest)
    task = manifest.task
    seen = round(1.25 * config.max_steps * config.batch_size * config.gradient_accumulation)
    return TransferData(
        unlabelled=without_targets(task_examples(task, "train", min(MOST_UNLABELLED, seen), start=UNSEEN_FROM)),
        development=task_examples(task, "validation", DEVELOPMENT, start=UNSEEN_FROM),
        off_task=_other_examples(task, captions=captions),
    )


def _other_examples(task: str, *, captions: bool) -> list[Example]:
    """Of what a miniature can do without an adapter, something that the task is not; none where it is all of it."""
    if captions and task not in WRITING_TASKS:
        return scene_captions("plain", "validation", OFF_TASK, UNSEEN_FROM)
    if task in ("vqa", "general"):
        return []
    return scene_questions("color", "validation", OFF_TASK, start=UNSEEN_FROM)
