"""The names that `pipeline` promises are there, and only those."""

from __future__ import annotations

import subprocess
import sys

import pytest

import pipeline


def test_every_promised_name_is_there_and_the_list_is_sorted() -> None:
    assert pipeline.__all__ == sorted(pipeline.__all__)
    assert set(pipeline.__all__) == set(pipeline._MODULE_OF)
    for name in pipeline.__all__:
        assert getattr(pipeline, name).__name__ == name


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Pipelin'"):
        _ = pipeline.Pipelin


def test_importing_the_package_imports_no_heavy_library() -> None:
    code = "import sys, pipeline; print(sorted({'pydantic', 'confluent_kafka', 'fastavro', 'rich'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert out.stdout.strip() == "[]"
