"""Every ``lorax-vlm`` command that README and docs show runs as it stands there, on a small store and small data.

Trainings get few steps and evaluations few scenes; a full-size base is replaced by its miniature.
"""

import json
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.cli.main import main
from lorax_vlm.commands import recorded
from lorax_vlm.data.scenes import iterate_scenes, make_scene
from lorax_vlm.evaluation import side_effects
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.settings import commands_dir
from lorax_vlm.skills import Skill, answer, caption
from tests.adapters_for_tests import write_manifest, write_random_adapter
from tests.data_for_tests import write_rows
from tests.sharing.test_signing import make_keys

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *(path for path in sorted((ROOT / "docs").glob("*.md")) if path.name != "cli.md")]
ELSEWHERE = ("hf://", "s3://", "https://", "--ray")
"""Addresses of others: their commands are tried against servers and clusters of ours, elsewhere in the tests."""
MINIATURE = {"blip2_flan": "blip2-flan-mini", "blip2_opt": "blip2-opt-mini"}
MORE = {
    "train": ["--steps", "2", "--eval-every", "2", "--batch-size", "16", "--replace"],
    "evaluate": ["--count", "4"],
    "benchmark": ["--count", "4", "--alone", "1"],
    "transfer": ["--steps", "2"],
    "swap": ["--steps", "2"],
}
MAY_REFUSE = ("adapters check", "exchange transfer", "exchange swap", "data check")
"""They say with exit code 1 that an adapter does not belong there, is worth nothing, or that data are unsound."""
LONG = "lorax-vlm exchange swap"


def documented() -> list[tuple[str, str]]:
    """Every command with its document, without comments."""
    found = {}
    for path in DOCUMENTS:
        for block in re.findall(r"```[a-z]*\n(.*?)```", path.read_text(encoding="utf-8"), flags=re.DOTALL):
            for line in block.splitlines():
                if line.startswith("lorax-vlm ") and not any(address in line for address in ELSEWHERE):
                    found[line.partition("#")[0].strip()] = path.name
    return list(found.items())


COMMANDS = documented()


def test_there_are_commands() -> None:
    assert len(COMMANDS) > 25


@pytest.fixture
def world(tmp_path: Path, load_shared: Callable[[str], LoadedModel], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with everything that the documents name, and a store with their adapters."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(side_effects, "QUESTIONS", 2)
    monkeypatch.setattr(side_effects, "CAPTIONS", 2)
    scenes = list(iterate_scenes("test", 60))
    for folder in ("labelled", "shapes/train", "shapes/test", "photos", "questions", "owner/set", "val2017"):
        Path(folder).mkdir(parents=True)
    for folder, some, asked in (
        ("photos", scenes[:8], False),
        ("labelled", scenes[:40], False),
        ("questions", scenes[:8], True),
        ("shapes/train", scenes[:8], True),
        ("shapes/test", scenes[8:12], True),
    ):
        for scene in some:
            scene.image.save(Path(folder, f"{scene.seed}.png"))
        question = {"question": "how many shapes are there?", "type": "shape"}
        rows = [
            {"file_name": f"{s.seed}.png"}
            | (question | {"answer": str(len(s.objects))} if asked else {"caption": s.caption("detailed")})
            for s in some
        ]
        write_rows(Path(folder), rows)
    for folder in ("owner/set", "val2017"):
        scenes[0].image.save(Path(folder, "0.png"))
    write_rows(Path("owner/set"), [{"file_name": "0.png", "day": "Monday"}])
    Path("annotations").mkdir()
    Path("annotations/captions_val2017.json").write_text(
        json.dumps({"images": [{"id": 1, "file_name": "0.png"}], "annotations": []}), encoding="utf-8"
    )
    Path("rows.csv").write_text(f"image,day\nphotos/{scenes[0].seed}.png,Monday\n", encoding="utf-8")
    Path("questions.jsonl").write_text(
        json.dumps({"image": f"photos/{scenes[0].seed}.png", "question": "How many stars?"}), encoding="utf-8"
    )
    for name in ("beach.jpg", "photo.jpg", "photo.png"):
        make_scene(5).image.save(name)
    Path("captions.yaml").write_text("command: caption\nimages: [photos]\n", encoding="utf-8")
    with recorded(commands_dir(), "caption", {"images": ["photos"]}, "photos"):
        pass
    Path("styles.yaml").write_text("brief: {style: concise}\nlong: {style: detailed}\n", encoding="utf-8")
    private, _ = make_keys(tmp_path, "key", ec.SECP256R1())
    private.rename("private.pem")
    for name, base, skill in (
        ("holiday", "blip2-opt-mini", caption("detailed")),
        ("image_caption", "blip2-opt-mini", caption("detailed")),
        ("blip2-opt-mini.counting", "blip2-opt-mini", answer("counting")),
        ("blip2-opt-mini.counting", "blip2-opt-mini", answer("counting")),
        ("blip2-opt-mini.reasoning", "blip2-opt-mini", answer("reasoning")),
        ("blip2-opt-mini.shapes", "blip2-opt-mini", answer("shapes")),
        ("blip2-flan-mini.answers", "blip2-flan-mini", answer("vqa")),
        ("blip2-flan-mini.counting", "blip2-flan-mini", answer("counting")),
        ("blip2-flan-mini.stars", "blip2-flan-mini", answer("counting")),
    ):
        add(load_shared(base), name, skill)
    return tmp_path


def add(base: LoadedModel, name: str, skill: Skill) -> None:
    store = AdapterStore()
    seed = len(store.names())
    folder = write_random_adapter(base, Path("made") / f"{seed}-{name}", seed=seed, scale=0.3)
    prompt = base.entry.question_template if skill.asked else base.entry.caption_prompt
    store.add(name, folder, write_manifest(base, folder, name=name, skill=skill, prompt=prompt), replace=True)


@pytest.mark.parametrize(
    ("command", "document"),
    [
        pytest.param(*pair, id=pair[0], marks=[pytest.mark.slow] if pair[0].startswith(LONG) else [])
        for pair in COMMANDS
    ],
)
def test_documented_commands_run(
    command: str, document: str, world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if "scenes export" in command:
        for folder in ("photos", "questions"):
            shutil.rmtree(folder)
    words = [MINIATURE.get(word, word) for word in shlex.split(command)[1:]]
    words = [str(next(Path("made").iterdir())) if word == "FOLDER" else word for word in words]
    ambiguous = words[0] == "adapters" and "counting" in " ".join(words)
    if ambiguous or words[:2] == ["exchange", "merge"]:  # of one base, as where the documents come to it
        AdapterStore().remove("blip2-flan-mini.counting")
    more = [option for word, options in MORE.items() if word in words[:2] for option in options]
    if "--data" in words and "evaluate" in words:
        more = []
    monkeypatch.setattr(sys, "argv", ["lorax-vlm", *words, *more])
    with pytest.raises(SystemExit) as stop:
        main()
    printed = capsys.readouterr()
    allowed = (0, 1) if command.startswith(tuple(f"lorax-vlm {start}" for start in MAY_REFUSE)) else (0,)
    assert (stop.value.code or 0) in allowed, f"{document}: {printed.out}{printed.err}"
    assert "Traceback" not in printed.err
