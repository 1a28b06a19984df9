"""What is found of altered copies, and what of different images is taken for one.

    python -m benchmarks.near_duplicates                # about a minute
    python -m benchmarks.near_duplicates --images 1000

Each drawn scene has a copy that is cropped, recompressed, made smaller, brighter or darker. *Recall*: the share of
copies that are found with their original. *Precision*: of all pairs that are taken for one, the share that is.
"""

import argparse
import io
from collections.abc import Callable
from itertools import combinations

from PIL import Image, ImageEnhance

from benchmarks.options import parse
from lorax_vlm.curation.similar import Looks, near_duplicates
from lorax_vlm.data.scenes import iterate_scenes


def recompressed(image: Image.Image) -> Image.Image:
    """As a JPEG of low quality."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=40)
    return Image.open(buffer).convert("RGB")


def cropped(image: Image.Image, share: float) -> Image.Image:
    """Without a margin all around."""
    width, height = image.size
    return image.crop(
        (round(width * share), round(height * share), round(width * (1 - share)), round(height * (1 - share)))
    )


ALTERED: dict[str, Callable[[Image.Image], Image.Image]] = {
    "recompressed (JPEG, 40)": recompressed,
    "half the size": lambda image: image.resize((image.width // 2, image.height // 2)),
    "brighter by a fifth": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    "darker by a fifth": lambda image: ImageEnhance.Brightness(image).enhance(0.8),
    "cropped by 2.5 % on each side": lambda image: cropped(image, 0.025),
    "cropped by 5 % on each side": lambda image: cropped(image, 0.05),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=400, help="drawn scenes")
    options = parse(parser, images=12)
    scenes = [scene.image.convert("RGB") for scene in iterate_scenes("test", options.images)]
    originals = [Looks.of(scene) for scene in scenes]
    print(f"{len(scenes)} scenes and a copy of each", flush=True)
    for name, alter in ALTERED.items():
        groups = near_duplicates([*originals, *(Looks.of(alter(scene)) for scene in scenes)])
        pairs = [pair for group in groups for pair in combinations(group, 2)]
        right = sum(other - one == len(scenes) for one, other in pairs)
        recall, precision = right / len(scenes), right / len(pairs) if pairs else 1.0
        print(f"{name}: recall {recall:.1%}, precision {precision:.1%}", flush=True)


if __name__ == "__main__":
    main()
