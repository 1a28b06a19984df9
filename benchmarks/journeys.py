"""How seven usual requests travel through the rooms: which files they enter, and how often a call climbs.

python -m benchmarks.journeys

A *stay* is a run of calls in one file. A *climb* is a call from a room to one that stands above it in
``docs/architecture.md``: a function that was handed down; generators and predicates in passing are none. *Reads* are
entries of the store that were opened.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks.options import parse
from docs.write_architecture import PACKAGE, room_of, rooms, storeys
from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.captioning import BLIP2CaptioningSystem
from lorax_vlm.cli.main import app
from lorax_vlm.data.scenes import make_scene
from lorax_vlm.data.world.skills import skill_splits
from lorax_vlm.exchange.moving import transfer
from lorax_vlm.models.loading import load_model
from lorax_vlm.skills import answer
from lorax_vlm.training.config import TrainConfig
from lorax_vlm.vqa import VQASystem
from tests.adapters_for_tests import write_manifest, write_random_adapter

OPT, FLAN = "blip2-opt-mini", "blip2-flan-mini"
LEVEL = {room: level for level, some in enumerate(storeys(rooms())) for room in some}


class Journey:
    """Counts while it is entered."""

    def __init__(self) -> None:
        self.files: set[str] = set()
        self.climbs: dict[str, int] = {}
        self.stays = self.reads = 0
        self._last = ""
        self._rooms: dict[str, str | None] = {}

    def _room(self, file: str) -> str | None:
        if file not in self._rooms:
            path = Path(file)
            inside = path.is_relative_to(PACKAGE) and path.parent != PACKAGE.parent
            self._rooms[file] = room_of(path) if inside and room_of(path) in LEVEL else None
        return self._rooms[file]

    def _called(self, frame: FrameType, event: str, _: Any) -> None:
        if event != "call" or (room := self._room(frame.f_code.co_filename)) is None:
            return
        file = frame.f_code.co_filename
        if file != self._last:
            self.stays += 1
            self._last = file
            self.files.add(file)
        if frame.f_code.co_qualname == "AdapterStore._read":
            self.reads += 1
        caller = frame.f_back
        while caller is not None and self._room(caller.f_code.co_filename) is None:
            caller = caller.f_back  # through a library, such as contextlib
        if caller is not None:
            above = self._room(caller.f_code.co_filename)
            name = f"{above} > {frame.f_code.co_qualname}"
            if above is not None and LEVEL[room] < LEVEL[above] and not name.endswith(("<genexpr>", "<lambda>")):
                self.climbs[name] = self.climbs.get(name, 0) + 1

    def __enter__(self) -> "Journey":
        sys.setprofile(self._called)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)


def command(*words: object) -> Callable[[], None]:
    """Runs a command in this process."""

    def run() -> None:
        with suppress(SystemExit):
            app(list(map(str, words)))

    return run


def main() -> None:
    """Print one line for each journey."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=4)
    arguments = parse(parser, steps=1)
    few = TrainConfig(max_steps=arguments.steps, batch_size=4, eval_every=arguments.steps, patience=None)
    with tempfile.TemporaryDirectory() as home:
        os.environ["LORAX_VLM_HOME"] = home
        store, photo = AdapterStore(), Path(home) / "photo.png"
        make_scene(1).image.save(photo)
        base = load_model(OPT)
        base.fingerprint  # noqa: B018 (read once, as for any base in use)
        load_model(FLAN).fingerprint  # noqa: B018
        for seed, name in enumerate(("counting", "other")):
            folder = write_random_adapter(base, Path(home) / name, seed=seed)
            prompt = base.entry.question_template
            store.add(f"{OPT}.{name}", folder, write_manifest(base, folder, skill=answer(name), prompt=prompt))
        folder = write_random_adapter(base, Path(home) / "style")
        store.add("style", folder, write_manifest(base, folder))
        system, captions = VQASystem("mini"), BLIP2CaptioningSystem(OPT)
        images = [make_scene(seed).image for seed in range(4)]
        splits = skill_splits(answer("color"), 40, 40)
        mixed = ["counting", None, "other", "counting"]
        journeys: dict[str, Callable[[], object]] = {
            "caption an image with an adapter": lambda: captions.caption_image(photo, "style"),
            "train on a folder": lambda: system.train_adapter(
                "blip2_opt", "new", "color", data=splits, config=few, progress=False
            ),
            "answer a mixed batch": lambda: system.answer_questions(images, ["How many?"] * 4, "blip2_opt", mixed),
            "check an adapter against a base": command("adapters", "check", "counting", "--json"),
            "move an adapter to another base": lambda: transfer(
                system.workspace.bases,
                f"{OPT}.new",
                "blip2_flan",
                unlabelled=list(splits.train),
                development=splits.validation,
                config=few,
                progress=False,
            ),
            "bring an adapter into memory": lambda: _into_memory(VQASystem("mini")),
            "evaluate with a page": command(
                "evaluate", "counting", "--count", 30, "--html", Path(home) / "page.html", "--json"
            ),
        }
        rows = []
        for title, run in journeys.items():
            out, sys.stdout = sys.stdout, open(os.devnull, "w")  # noqa: SIM115
            try:
                with Journey() as journey:
                    run()
            finally:
                sys.stdout.close()
                sys.stdout = out
            rows.append((title, journey))
        for title, journey in rows:
            climbed = json.dumps(sorted(journey.climbs)) if journey.climbs else "none"
            print(
                f"{title:<34} {journey.stays:>6} stays in {len(journey.files):>3} files, "
                f"{len(journey.climbs)} kinds of climbs, {journey.reads} reads of the store; climbs: {climbed}",
                flush=True,
            )


def _into_memory(system: VQASystem) -> None:
    with system.workspace.bases.use(OPT) as engine:
        engine.find("counting")


if __name__ == "__main__":
    main()
