"""Captions are never trained as answers, nor answers as captions, by whichever system."""

from pathlib import Path

import pytest

from lorax_vlm.captioning import BLIP2CaptioningSystem
from lorax_vlm.errors import DataError
from lorax_vlm.multimodal import MultiModalLoRAExchange
from lorax_vlm.vqa import VQASystem
from tests.data_for_tests import captioned, numbered, write_pictures, write_rows


@pytest.fixture
def data(tmp_path: Path) -> dict[str, Path]:
    """A folder of captions, and one of questions about the same images."""
    folders = {kind: tmp_path / kind for kind in ("captions", "questions")}
    for folder in folders.values():
        write_pictures(folder, numbered(6))
    write_rows(folders["captions"], captioned(numbered(6)))
    write_rows(folders["questions"], [{"file_name": n, "question": "q?", "answer": "red"} for n in numbered(6)])
    return folders


def test_captions_for_a_task(data: dict[str, Path], tmp_path: Path) -> None:
    reason = r"captions: 1 problem.*\n.*it holds captions \(6 rows\), --task needs questions\n"
    answering, exchange = VQASystem("mini", store=tmp_path / "a"), MultiModalLoRAExchange("mini", store=tmp_path / "b")
    assert answering.training_data("blip2_opt", "colors", data["questions"]).kind == "questions"
    for model in ("blip2_opt", "vilt"):
        with pytest.raises(DataError, match=reason):
            answering.training_data(model, "colors", data["captions"])
    for task in ("vqa", "instruction_following", "general"):
        with pytest.raises(DataError, match=reason):
            exchange.create_adapter("blip2_opt", "x", task, "light", data=data["captions"])


def test_questions_for_a_style(data: dict[str, Path], tmp_path: Path) -> None:
    reason = r"it holds questions \(6 rows\), a style needs captions\nTrain them as a skill: give --task NAME"
    captioning, exchange = (
        BLIP2CaptioningSystem("blip2-opt-mini", store=tmp_path / "a"),
        MultiModalLoRAExchange("mini", store=tmp_path / "b"),
    )
    assert captioning.training_data("mine", data["captions"]).kind == "captions"
    with pytest.raises(DataError, match=reason):
        captioning.training_data("mine", data["questions"])
    for create in (captioning.create_captioning_adapter, captioning.train_adapter):
        with pytest.raises(DataError, match=reason):
            create("x", "mine", data=data["questions"])
    with pytest.raises(DataError, match=reason):
        exchange.create_adapter("blip2_opt", "x", "captioning", "light", data=data["questions"])
