"""Parts chosen by name: an unknown name says what is accepted, an import path needs no entry."""

import pytest

from pipeline.registry import Registry

NUMBERS = Registry[float]("some.setting", {"pi": "math:pi", "tau": "math:tau"})


def test_entry_is_found_by_name_and_by_import_path() -> None:
    assert NUMBERS["pi"] == NUMBERS["math:pi"] == pytest.approx(3.14159, abs=1e-5)


def test_unknown_name_says_what_is_accepted() -> None:
    with pytest.raises(ValueError, match=r"unknown name tua; did you mean tau\?.*pi"):
        NUMBERS["tua"]


@pytest.mark.parametrize("path", ["math:nothing", "no_such_package:X"])
def test_path_that_can_not_be_loaded_says_why(path: str) -> None:
    with pytest.raises(ValueError, match=r"can't be loaded: .*on every node"):
        NUMBERS[path]
