"""What can be read off the frozen image path: with a yes and a no that are known."""

from collections.abc import Callable

import numpy as np
import pytest

from lorax_vlm.data.examples import DataSplits, answered
from lorax_vlm.data.world.examples import scene_questions
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.training.probe import _read, probe_image_path
from tests.images_for_tests import unseen_lines


def test_ridge_regression_by_the_kernel_is_ridge_regression() -> None:
    """Against the usual form, ``(X^T X + r I)^-1 X^T Y``, on fewer features than rows."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 60)
    features = rng.normal(size=(60, 8)) + 2.0 * np.eye(3, 8)[labels]
    scale = np.square(features - features.mean(axis=0)).sum() / 60
    x, wanted = (features - features.mean(axis=0)) / np.sqrt(scale), np.eye(3)[labels]
    order, right = np.random.default_rng(0).permutation(60), 0
    for fold in range(5):
        tried = order[fold::5]
        fitted = np.setdiff1d(order, tried)
        mean = wanted[fitted].mean(axis=0)
        weights = np.linalg.solve(x[fitted].T @ x[fitted] + 0.1 * np.eye(8), x[fitted].T @ (wanted[fitted] - mean))
        right += int(((x[tried] @ weights + mean).argmax(axis=1) == labels[tried]).sum())
    assert _read(features, labels, 0.1) == right / 60
    assert right / 60 > 0.7


@pytest.mark.parametrize("name", ["blip2-opt-mini", "instructblip-mini"])
def test_what_the_base_sees_can_be_read(name: str, load_shared: Callable[[str], LoadedModel]) -> None:
    base = load_shared(name)
    examples = scene_questions("color", "train", 250, per_scene=None)
    splits = DataSplits(examples, [], "x").with_prompt(base.entry.question_template)
    report = probe_image_path(base, splits.train)
    assert report is not None
    assert not report.limits
    assert report.questions[0].read > 0.95
    assert report.questions[0].frequent < 0.5


def test_what_the_base_does_not_see_cannot_be_read(mini: LoadedModel) -> None:
    """A hair's breadth of grey, which the base's preprocessing leaves in and its vision does not tell apart."""
    examples = [
        answered(image, "Is it long?", [answer], f"row {number}")
        for number, (image, answer) in enumerate(unseen_lines(80))
    ]
    report = probe_image_path(mini, DataSplits(examples, [], "x").with_prompt("Question: {question} Answer:").train)
    assert report is not None
    assert report.limits
    assert "of 'Is it long?' (80 images" in report.lines()[0]


def test_where_it_cannot_be_told(mini: LoadedModel, load_shared: Callable[[str], LoadedModel]) -> None:
    few = scene_questions("color", "train", 10)
    assert probe_image_path(mini, few) is None
    assert probe_image_path(load_shared("vilt-mini"), scene_questions("color", "train", 200, per_scene=None)) is None
