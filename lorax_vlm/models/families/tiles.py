"""Idefics3 and SmolVLM: an image as one tile, or as rows and columns of tiles and one of the whole.

Every tile takes the same number of tokens. How many there are is the image processor's setting; without splitting an
image is squashed into one square, as BLIP does.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, Idefics3ForConditionalGeneration, SmolVLMForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from lorax_vlm.errors import UsageError
from lorax_vlm.models.families.base import Batch
from lorax_vlm.models.families.chat import ChatFamily, ChatProcessor
from lorax_vlm.models.families.pictures import Features, Picture

_IMAGE, _AROUND, _WHOLE = "<image>", "<fake_token_around_image>", "<global-img>"
_MOST_TILES = 6
"""Rows and columns that the tokenizers have tags for."""
_NUMBERS = range(1, _MOST_TILES + 1)
TILE_TAGS = tuple(f"<row_{row}_col_{column}>" for row in _NUMBERS for column in _NUMBERS)
"""What stands before a tile."""


class TilesFamily(ChatFamily):
    """Images for ``Idefics3ForConditionalGeneration``."""

    name = "idefics3"
    model_class: ClassVar[Any] = Idefics3ForConditionalGeneration
    unquantized: ClassVar[tuple[str, ...]] = ("model.vision_model", "model.connector", "lm_head")
    image_processor_class: ClassVar[Any] = Idefics3ImageProcessorPil
    markers: ClassVar[tuple[str, ...]] = (_IMAGE, _AROUND, _WHOLE, *TILE_TAGS)

    @classmethod
    def load_processor(cls, folder: Path) -> ChatProcessor:
        """Tokenizer and image processor of a checkpoint's folder; images are one tile each.

        The published settings make many tiles of any image, after enlarging it: thirteen times the work.
        """
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        settings = cls.image_processor_class.from_pretrained(folder, trust_remote_code=False)
        return ChatProcessor(tokenizer, _with(settings, do_image_splitting=False), folder)

    def with_image_tokens(self, most: int) -> Self:
        """The same family with images of as many tiles as may have so many tokens, of one size."""
        if most < self.tile_tokens:
            raise UsageError(
                f"image_tokens is {most}, and an image of {self.checkpoint} has {self.tile_tokens} at least."
            )
        side = min(math.isqrt(max(0, most // self.tile_tokens - 1)), _MOST_TILES)
        splits = side > 1
        settings = _with(
            self.processor.image_processor,
            do_image_splitting=splits,
            size={"longest_edge": side * self._side} if splits else dict(self.processor.image_processor.size),
        )
        return type(self)(replace(self.processor, image_processor=settings), self.config, self.checkpoint)

    @property
    def chosen(self) -> Mapping[str, Any]:
        """Most tokens of an image, whatever its sides."""
        settings = self.processor.image_processor
        side = settings.size["longest_edge"] // self._side if settings.do_image_splitting else 0
        return {"image_tokens": (side**2 + 1) * self.tile_tokens}

    def __init__(self, processor: ChatProcessor, config: Any, checkpoint: str) -> None:
        """See ``ChatFamily``."""
        vision = config.vision_config
        self.tile_tokens = (vision.image_size // vision.patch_size) ** 2 // config.scale_factor**2
        self._side = vision.image_size
        self._tile_ids = cache(self._make_ids)
        self.config = config
        super().__init__(processor, config, checkpoint)

    def problems(self, config: Any) -> list[str]:
        """See ``ChatFamily.problems``."""
        settings, problems = self.processor.image_processor, []
        if (side := settings.max_image_size["longest_edge"]) != self._side:
            problems.append(f"its tiles are {side} pixels wide, the model reads {self._side}")
        unknown = [tag for tag in self._tags if self._id_of(tag) is None]
        if unknown:
            problems.append(f"the tokenizer has no {', '.join(unknown[:3])}")
        return problems

    @property
    def _tags(self) -> tuple[str, ...]:
        return self.markers if self.processor.image_processor.do_image_splitting else self.markers[:3]

    def _id_of(self, token: str) -> int | None:
        found = self.tokenizer.convert_tokens_to_ids(token)
        return None if found is None or found == self.tokenizer.unk_token_id else int(found)

    # --- images -----------------------------------------------------------------------------------------------------

    def prepare(self, images: Sequence[Image.Image]) -> list[Picture]:
        """``pixel_values`` ``(N, 3, S, S)`` of each; its grid is rows and columns, nothing for one tile."""
        found = self.processor.image_processor(
            [[image] for image in images], return_row_col_info=True, return_tensors="pt"
        )
        grids = [
            (rows, columns) if rows else () for [rows], [columns] in zip(found["rows"], found["cols"], strict=True)
        ]
        return [
            Picture({"pixel_values": pixels[: _tiles(grid)]}, grid)
            for pixels, grid in zip(found["pixel_values"], grids, strict=True)
        ]

    def pixel_batch(self, pictures: Sequence[Picture]) -> Batch:
        """``pixel_values`` ``(B, N, 3, S, S)``; images of fewer tiles end in zeros, which the model leaves out."""
        tiles = [_seen(picture.tensors["pixel_values"]) for picture in pictures]
        most = max(map(len, tiles))
        filled = [torch.cat([own, own.new_zeros(most - len(own), *own.shape[1:])]) for own in tiles]
        return {"pixel_values": torch.stack(filled)}

    def lengths(self, pictures: Sequence[Picture]) -> list[int]:
        """Tiles."""
        return [_tiles(picture.grid) for picture in pictures]

    def encode_images(self, model: Any, pictures: Sequence[Picture], prompts: Sequence[str] = ()) -> list[Features]:
        """``(N * tokens of a tile, D)`` of each."""
        tiles = torch.cat([_seen(picture.tensors["pixel_values"]) for picture in pictures]).to(model.device)
        [seen] = model.get_image_features(tiles[None], return_dict=True).pooler_output
        counts = [length * self.tile_tokens for length in self.lengths(pictures)]
        return [Features(own, one.grid) for own, one in zip(seen.split(counts), pictures, strict=True)]

    def encode_batch(self, model: Any, pictures: Sequence[Picture], batch: Batch) -> list[Features]:
        """As ``encode_images``: no text enters."""
        return self.encode_images(model, pictures)

    def encoded(self, features: Sequence[Features]) -> Any:
        """See ``ChatFamily.encoded``."""
        return BaseModelOutputWithPooling(pooler_output=[one.values for one in features])

    # --- what stands for them ---------------------------------------------------------------------------------------

    def image_ids(self, grid: tuple[int, ...]) -> list[int]:
        """As the library's processor writes it: the tiles row by row, each row with a line break, then the whole."""
        return self._tile_ids(grid)

    def _make_ids(self, grid: tuple[int, ...]) -> list[int]:
        places, written = _IMAGE * self.tile_tokens, ""
        if grid:
            rows, columns = grid
            for row in range(1, rows + 1):
                written += "".join(f"{_AROUND}<row_{row}_col_{column + 1}>{places}" for column in range(columns)) + "\n"
            written += "\n"
        written += f"{_AROUND}{_WHOLE}{places}{_AROUND}"
        ids: list[int] = self.tokenizer(written, add_special_tokens=False)["input_ids"]
        return ids


class SmolVlmFamily(TilesFamily):
    """Images for ``SmolVLMForConditionalGeneration``, whose modules have the same names."""

    name = "smolvlm"
    model_class: ClassVar[Any] = SmolVLMForConditionalGeneration
    image_processor_class: ClassVar[Any] = SmolVLMImageProcessorPil


def _with(image_processor: Any, **changes: Any) -> Any:
    """An image processor with other settings."""
    return type(image_processor)(**{**image_processor.to_dict(), **changes})


def _tiles(grid: tuple[int, ...]) -> int:
    return grid[0] * grid[1] + 1 if grid else 1


def _seen(tiles: Tensor) -> Tensor:
    """Tiles of which none is all zeros: the model takes such a one for padding, and gives its tokens to the next image.

    Of a picture in one grey they may be; the smallest number makes no difference.
    """
    empty = (tiles == 0).flatten(1).all(dim=1)
    if not empty.any():
        return tiles
    changed = tiles.clone()
    changed[empty, 0, 0, 0] = torch.finfo(torch.bfloat16).tiny
    return changed
