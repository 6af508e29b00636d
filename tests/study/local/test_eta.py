"""The time that is left."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdschemes.study.local.eta import Speed
from kdschemes.study.local.packs import epoch_work
from tests.study.local.cases import by_name, opened


def test_time_left_is_that_of_the_slowest_worker(tmp_path: Path) -> None:
    runs = by_name(opened(tmp_path)[1])
    kd, soft, ce = runs["kd"], runs["soft"], runs["ce"]
    speed = Speed()
    assert speed.left([[(ce, 4.0)]], [], 1) is None
    speed.measured([ce], 10.0)
    assert speed.left([[(ce, 4.0)]], [], 1) == 40.0
    speed.measured([kd, soft], 3.0)
    assert speed.left([[(ce, 4.0)]], [[(kd, 4.0), (soft, 2.0)]], 2) == 40.0
    assert speed.left([[(ce, 4.0)]], [[(kd, 4.0), (soft, 2.0)]], 1) == 58.0
    assert speed.left([], [], 2) == 0.0
    speed.closed(5.0)
    assert speed.left([[(ce, 0.0)], [(kd, 1.0), (soft, 0.0)]], [], 2) == 13.0


def test_a_kind_that_was_not_seen_takes_what_others_say_for_its_work(tmp_path: Path) -> None:
    runs = by_name(opened(tmp_path)[1])
    ce, wide = runs["ce"], runs["wide"]
    speed = Speed()
    speed.measured([ce], 2.0)
    found = speed.left([[(wide, 3.0)]], [], 1)
    assert found == pytest.approx(3 * 2.0 * epoch_work(wide.config, 1) / epoch_work(ce.config, 1))
    speed.measured([wide], 7.0)
    assert speed.left([[(wide, 3.0)]], [], 1) == 21.0
    assert speed.left([[(ce, 3.0)]], [], 1) == 6.0
