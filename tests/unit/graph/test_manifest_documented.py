"""The manifest that docs/onnx-support.md shows."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from radiopaque.cli.models import find_model
from radiopaque.errors import ManifestError
from radiopaque.graph.manifest import Manifest

DOCUMENT = Path(__file__).parents[3] / "docs" / "onnx-support.md"


def documented() -> dict[str, object]:
    (block,) = re.findall(r"```json\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    found: dict[str, object] = json.loads(block)
    return found


def test_the_example_is_whole(tmp_path: Path) -> None:
    manifest = Manifest.parse(json.dumps(documented()).encode(), tmp_path)
    assert manifest.preprocessing.height == 224


@pytest.mark.parametrize("key", documented())
def test_nothing_of_the_example_can_be_left_out(key: str, tmp_path: Path) -> None:
    less = documented()
    del less[key]
    with pytest.raises(ManifestError, match=key):
        Manifest.parse(json.dumps(less).encode(), tmp_path)


def test_a_model_without_a_manifest_is_sent_there(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(ManifestError, match=r"docs/onnx-support\.md"):
        _ = find_model(tmp_path / "model.onnx").preprocessing
