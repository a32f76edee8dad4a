"""The mutants of `tests.mutants` are still about lines that are there."""

from __future__ import annotations

import pytest

from tests.mutants import MUTANTS, ROOT


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.what)
def test_the_line_is_there_once_and_the_tests_are_there(mutant):
    assert (ROOT / mutant.file).read_text().count(mutant.old) == 1
    assert (ROOT / mutant.tests.partition(" -k ")[0]).is_file()
