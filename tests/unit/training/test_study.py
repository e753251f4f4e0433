"""Comparing configurations over seeds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("opacus")

import torch

from tests.unit.training.pictures import PRIVACY, SIZE
from training import federated, study
from training.config import load_settings
from training.errors import SettingsError

torch.set_num_threads(1)
EXAMPLES = sorted((Path(__file__).parents[3] / "examples" / "study").glob("*.toml"))
CONFIG = f"""
mode = "{{mode}}"
threads = 1
[data]
image_size = {SIZE}
validation_fraction = 0.2
[model]
options = {{{{ width = 2 }}}}
[training]
rounds = 2
local_steps = 2
[output]
description = "in {{mode}} mode"
"""


def configurations(folder: Path) -> list[Path]:
    paths = [folder / f"{mode}.toml" for mode in ("local", "federated")]
    for path in paths:
        path.write_text(CONFIG.format(mode=path.stem))
    return paths


def test_a_table_of_means_over_seeds(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "study"
    words = [*map(str, configurations(tmp_path)), "--data", str(folder), "--output", str(output)]
    assert study.main([*words, "--seeds", "4", "9"]) == 0
    found = json.loads((output / study.JSON_FILE).read_text())
    assert found["seeds"] == [4, 9]
    assert [row["file"] for row in found["rows"]] == ["local.toml", "federated.toml"]
    for row in found["rows"]:
        logs = [
            json.loads((output / Path(row["file"]).stem / f"seed-{seed}" / "log.json").read_text())
            for seed in (4, 9)
        ]
        assert [log["settings"]["seed"] for log in logs] == [4, 9]
        assert row["best_auc"] == [log["best_validation_auc"] for log in logs]
        assert row["mean"] == pytest.approx(sum(row["best_auc"]) / 2)
    text = (output / study.TABLE_FILE).read_text()
    first = found["rows"][0]["best_auc"]
    mean = found["rows"][0]["mean"]
    assert f"| in local mode | {first[0]:.3f} | {first[1]:.3f} | {mean:.3f} |" in text
    assert text in capsys.readouterr().out


def test_it_goes_on_where_it_was_interrupted(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = configurations(tmp_path)
    whole = study.study(files, folder, tmp_path / "whole", [1, 2], report=lambda line: None)
    run = federated.run
    runs: list[Path] = []

    def interrupted(settings: Any, intake: Any, where: Path, **options: Any) -> Any:
        runs.append(where)
        if len(runs) == 3:
            raise KeyboardInterrupt
        return run(settings, intake, where, **options)

    monkeypatch.setattr(federated, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        study.study(files, folder, tmp_path / "broken", [1, 2], report=lambda line: None)
    monkeypatch.undo()
    resumed = study.study(
        files, folder, tmp_path / "broken", [1, 2], resume=True, report=lambda line: None
    )
    assert resumed == whole


def test_what_cannot_be_compared_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    private = tmp_path / "private.toml"
    private.write_text(
        'mode = "federated"\n[training]\nlocal_steps = 1\n[privacy]\n'
        + "".join(f"{key} = {json.dumps(value)}\n" for key, value in PRIVACY.items())
    )
    with pytest.raises(SettingsError, match="run by run"):
        study.study([private], folder, tmp_path / "study", [1])
    files = [str(path) for path in configurations(tmp_path)]
    words = [*files, "--data", str(tmp_path / "none"), "--output", str(tmp_path / "study")]
    assert study.main(words) == 2
    assert "holds train/NORMAL" in capsys.readouterr().err


def test_the_committed_comparison_differs_in_nothing_but_the_sites() -> None:
    settings = [load_settings(path) for path in EXAMPLES]
    assert [path.stem for path in EXAMPLES] == [
        "one-site",
        "three-sites-plain",
        "three-sites-secure",
    ]
    alike = [one.model_dump(exclude={"mode", "federation", "output"}) for one in settings]
    assert alike[0] == alike[1] == alike[2]
    assert not any(settings[0].augmentation.model_dump().values())
    plain, secure = settings[1].federation_or_default(), settings[2].federation_or_default()
    assert (plain.secure_aggregation, secure.secure_aggregation) == (False, True)
    assert plain.model_copy(update={"secure_aggregation": True}) == secure
