"""Write the picture of the rooms in ``docs/architecture.md`` from the package's own imports.

python -m docs.write_architecture
"""

import ast
from collections import defaultdict
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "lorax_vlm"
PAGE = Path(__file__).parent / "architecture.md"
BEGIN, END = "<!-- rooms: begin -->", "<!-- rooms: end -->"
ROOT_NAMES = ("__init__", "__main__")


def room_of(path: Path) -> str:
    """The folder or file directly below the package that a file is in."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    """The rooms that a file imports from, inside of functions too."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    names = {f"{node.module}.{alias.name}" for node in nodes for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("lorax_vlm.")} - {"__version__"}


def rooms() -> dict[str, set[str]]:
    """Every room with those it imports from."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in sorted(PACKAGE.rglob("*.py")):
        if (room := room_of(path)) not in ROOT_NAMES:
            found[room] |= imported_rooms(path) - {room}
    return dict(found)


def storeys(found: dict[str, set[str]]) -> list[list[str]]:
    """Rooms by how far down they stand: the lowest import nothing, each other one only from below.

    Raises:
        ValueError: There is a circle.
    """
    left, placed, result = dict(found), set[str](), list[list[str]]()
    while left:
        free = sorted(room for room, below in left.items() if below <= placed)
        if not free:
            raise ValueError(f"a circle among {', '.join(sorted(left))}")
        result.append(free)
        placed |= set(free)
        for room in free:
            del left[room]
    return result[::-1]


def purpose(room: str) -> str:
    """The first sentence of a room's file, or of what it holds."""
    path = PACKAGE / f"{room}.py"
    if path.is_file():
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        return text.split("\n")[0].split(". ")[0].rstrip(".")
    files = [p for p in (PACKAGE / room).rglob("*.py") if p.name != "__init__.py"]
    return f"{len(files)} files: {', '.join(sorted(p.stem for p in files)[:6])}{', ...' if len(files) > 6 else ''}"


def picture() -> str:
    """The rooms, the highest first, as a table and a graph."""
    found = rooms()
    lines = ["| storey | room | what is there | imports from |", "|---|---|---|---|"]
    for number, row in enumerate(storeys(found)):
        lines += [
            f"| {number} | `{room}` | {purpose(room)} | {', '.join(sorted(found[room])) or '-'} |" for room in row
        ]
    arrows = sum(map(len, found.values()))
    return "\n".join([*lines, "", f"{len(found)} rooms, {arrows} arrows, none back."])


def render(page: str) -> str:
    """The page with the picture as it is now."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{picture()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(render(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"Wrote {PAGE}")
