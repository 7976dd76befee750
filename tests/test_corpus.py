"""The cases that fuzzing found, and the way they are kept."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

from hw.parameters import Size
from tests import fuzz
from tests.random_networks import image_codes


@pytest.mark.parametrize("case", sorted(fuzz.CORPUS.glob("case_*")), ids=lambda case: case.name)
def test_what_was_found_stays_right(case: Path) -> None:
    assert fuzz.replay(case) is None


@pytest.mark.slow
def test_a_case_is_kept_and_shows_a_difference(tmp_path: Path) -> None:
    network = fuzz.draw(7)
    images = image_codes(np.random.default_rng(7), network, 1)
    case = fuzz.keep_case(network, images, Size(4, 4), 7, None, tmp_path)
    with patch("tests.fuzz.Emulator") as wrong:
        wrong.return_value.classify.return_value = np.array([-1])
        assert fuzz.replay(case)["emulation"] == -1
    assert fuzz.replay(case) is None
