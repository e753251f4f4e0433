"""Rolling a model back: what is offered afterwards, and files that say it wrongly."""

from __future__ import annotations

import json
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from model_owner.hosting import Hosted
from model_owner.rollback import FILE, Newest, read, roll_back
from radiopaque.engine.weights_file import write_compiled
from radiopaque.errors import StoreError, UnknownModelError
from tests.e2e.networks import lungs

VERSIONS = ("1.2", "1.9", "1.10")
Models = list[tuple[Path, str | None, str | None]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Three versions of one model, and another model."""
    folder = tmp_path_factory.mktemp("compiled")
    network = lungs()
    found: Models = []
    for version in VERSIONS:
        plan = replace(network.plan, version=version)
        write_compiled(folder / version, plan, network.weights)
        found.append((folder / version, None, None))
    return [*found, (folder / "1.2", "other", "7")]


def names(hosted: Hosted) -> list[tuple[str, str]]:
    return [(model.name, model.version) for model in hosted.all()]


def test_newer_versions_are_gone_at_once_and_come_back(models: Models, tmp_path: Path) -> None:
    store = tmp_path / "store"
    newest = Newest(store)
    hosted = Hosted.load(models[:3], newest=newest.versions)
    artefacts = {model.version: model.key.id.artefact for model in hosted.all()}
    assert names(hosted) == [("lungs", version) for version in VERSIONS]
    assert hosted.by_name("lungs", "").version == "1.10"

    assert roll_back(store, models, "lungs", "1.9") == (["1.2", "1.9"], ["1.10"])
    assert names(hosted) == [("lungs", "1.2"), ("lungs", "1.9")]
    assert hosted.by_name("lungs", "").version == "1.9"
    assert hosted.by_artefact(artefacts["1.9"]).version == "1.9"
    with pytest.raises(UnknownModelError, match="not hosted here any more"):
        hosted.by_artefact(artefacts["1.10"])
    with pytest.raises(UnknownModelError, match=r"offers: lungs 1\.2, lungs 1\.9$"):
        hosted.by_name("lungs", "1.10")

    roll_back(store, models, "lungs", "1.2")
    assert names(hosted) == [("lungs", "1.2")]
    assert roll_back(store, models, "lungs", "1.10") == (list(VERSIONS), [])
    assert hosted.by_name("lungs", "").version == "1.10"
    assert hosted.by_artefact(artefacts["1.10"]).version == "1.10"


def test_one_model_is_rolled_back_and_no_other(models: Models, tmp_path: Path) -> None:
    assert roll_back(tmp_path / "store", models, "other", "7") == (["7"], [])
    roll_back(tmp_path / "store", models, "lungs", "1.2")
    assert read(tmp_path / "store") == {"other": "7", "lungs": "1.2"}
    assert stat.S_IMODE((tmp_path / "store" / FILE).stat().st_mode) == 0o600


@pytest.mark.parametrize(("name", "version"), [("lungs", "1.1"), ("lung", "1.9"), ("lungs", "")])
def test_what_is_not_hosted(models: Models, tmp_path: Path, name: str, version: str) -> None:
    with pytest.raises(UnknownModelError, match=r"add its folder to \[\[models\]\]"):
        roll_back(tmp_path, models, name, version)
    assert not (tmp_path / FILE).exists()


@pytest.mark.parametrize("content", ["", "[]", '{"lungs": 1}', '{"lungs": "1.9"', "\xff"])
def test_files_that_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_bytes(content.encode("latin-1"))
    with pytest.raises(StoreError, match="remove it to serve the newest"):
        Newest(tmp_path)


def test_a_file_that_breaks_later_offers_nothing(models: Models, tmp_path: Path) -> None:
    """Not everything: what was withdrawn must not come back by an accident."""
    roll_back(tmp_path, models, "lungs", "1.9")
    hosted = Hosted.load(models[:3], newest=Newest(tmp_path).versions)
    (tmp_path / FILE).write_text("{")
    with pytest.raises(StoreError):
        hosted.by_name("lungs", "")
    (tmp_path / FILE).write_text(json.dumps({"lungs": "1.2"}))
    assert hosted.by_name("lungs", "").version == "1.2"
