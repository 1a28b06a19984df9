"""The page and the pictures of exchanges, with the words of others on them."""

import dataclasses
from pathlib import Path

import pytest

from lorax_vlm.adapters.inspection import inspect_adapter
from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.errors import PathError, UsageError
from lorax_vlm.exchange.matrix import CompatibilityMatrix, build_matrix
from lorax_vlm.reports.exchange_page import write_exchange_page
from lorax_vlm.reports.pictures import draw_inspection, draw_matrix
from tests.adapters_for_tests import write_manifest
from tests.exchange.test_report import report

ODD = "of \x1b]0;owned\x07 and \u202eus\ud800"


@pytest.fixture
def matrix(mini, store: AdapterStore, adapter_folder: Path) -> CompatibilityMatrix:
    """One adapter and one base, which calls itself something odd."""
    store.add("mine", adapter_folder, write_manifest(mini, adapter_folder))
    return build_matrix(store, [dataclasses.replace(mini.description, name=ODD)])


def test_a_page_is_written_with_odd_words_written_out(matrix: CompatibilityMatrix, tmp_path: Path) -> None:
    plan = dataclasses.replace(report().plan, adapter=ODD)
    made = dataclasses.replace(report(), plan=plan, reasons=(ODD,))
    text = write_exchange_page(matrix, [made], tmp_path / "deep" / "page.html", title=ODD).read_text(encoding="utf-8")
    assert text.count("of \\x1b]0;owned\\x07 and \\u202eus\\ud800") >= 4
    assert not set("\x1b\x07\u202e") & set(text)


@pytest.mark.parametrize("name", ["file/page", ".", "x" * 300])
def test_where_it_cannot_be_written_is_said(
    name: str, matrix: CompatibilityMatrix, adapter_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    path, found = tmp_path / name, inspect_adapter(adapter_folder)
    with pytest.raises(PathError):
        write_exchange_page(matrix, [], path)
    with pytest.raises(PathError):
        draw_matrix(matrix, path)
    with pytest.raises(PathError):
        draw_inspection(found, path)


def test_pictures_are_of_the_kind_that_is_named(
    matrix: CompatibilityMatrix, adapter_folder: Path, tmp_path: Path
) -> None:
    for name, start in (("a.png", b"\x89PNG"), ("a", b"\x89PNG"), ("a.pdf", b"%PDF")):
        assert draw_matrix(matrix, tmp_path / name).read_bytes().startswith(start)
        assert draw_inspection(inspect_adapter(adapter_folder), tmp_path / name).read_bytes().startswith(start)


def test_nothing_is_drawn_of_no_adapters(matrix: CompatibilityMatrix, tmp_path: Path) -> None:
    nothing = CompatibilityMatrix((), matrix.bases, {}, {})
    for make in (lambda: draw_matrix(nothing, tmp_path / "a.png"), lambda: write_exchange_page(nothing, [], tmp_path)):
        with pytest.raises(UsageError, match="no adapters"):
            make()


def test_a_page_replaces_a_page_and_nothing_else(matrix: CompatibilityMatrix, tmp_path: Path) -> None:
    page = write_exchange_page(matrix, [], tmp_path / "page.html")
    assert write_exchange_page(matrix, [], page) == page
    (tmp_path / "mine.html").write_text("<p>mine</p>")
    with pytest.raises(PathError, match="lorax-vlm did not write"):
        write_exchange_page(matrix, [], tmp_path / "mine.html")
    assert (tmp_path / "mine.html").read_text() == "<p>mine</p>"
