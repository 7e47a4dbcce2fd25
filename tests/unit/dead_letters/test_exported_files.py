"""Files of exported dead letters: what breaks off leaves nothing behind, least of all what is personal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.cli.dlq_actions import _write
from pipeline.model.errors import ClusterUnavailable, ConfigurationError


class Desk:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def letters(self, _numbers: object) -> Any:
        raise self.error


@pytest.mark.parametrize("name", ["letters.jsonl", "letters.avro"])
@pytest.mark.parametrize("error", [ClusterUnavailable("away"), KeyboardInterrupt(), OSError(28, "No space left")])
def test_an_export_that_breaks_off_leaves_no_file(tmp_path: Path, name: str, error: BaseException) -> None:
    desk: Any = Desk(error)
    desk.fetch = lambda *_: desk.letters(())
    with pytest.raises(ConfigurationError if isinstance(error, OSError) else type(error)):
        _write(desk, [1], True, tmp_path / name)
    assert list(tmp_path.iterdir()) == []
