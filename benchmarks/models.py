"""The models that are measured: the shipped ones, and networks made here from a seed.

A made network lies in the user's cache as a model folder like any other, an ONNX file with a
manifest that holds its calibrated ranges, under the digest of all that it follows from.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.errors import BenchmarkError
from radiopaque.cli.models import ModelSource, find_model, image_files, tensors
from radiopaque.graph.manifest import MANIFEST_FILE, Manifest, file_digest
from radiopaque.graph.plan import Preprocessing
from radiopaque.graph.ranges import calibrate

MADE = (
    "resnet18",
    "resnet18-average",
    "resnet50",
    "vgg16",
    "densenet121",
    "mobilenet-v2",
    "efficientnet-lite0",
    "lenet",
)
STEP = 32
_USUAL = "pneumonia-resnet18"
_LARGEST = 1024
_SIZE, _LENET_SIZE = 224, 32
_SEED = 20_261_121
_OPSET = 17
_MEAN, _STD = 0.5, 0.25
_SOURCES = ("models.py", "networks.py", "networks_narrow.py")

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Choice:
    """A model by name and side of its images; the size of a shipped one is given."""

    name: str
    size: int
    made: bool

    def __str__(self) -> str:
        return f"{self.name}@{self.size}"


def data_root() -> Path:
    """Where models/ and samples/ are: the checkout, or the current folder."""
    for root in (Path(__file__).resolve().parents[1], Path.cwd()):
        if (root / "models").is_dir() and (root / "samples").is_dir():
            return root
    raise BenchmarkError("no folders models/ and samples/ here; run this from a checkout")


def shipped() -> tuple[str, ...]:
    """Names of the model folders of the checkout."""
    found = (data_root() / "models").glob(f"*/{MANIFEST_FILE}")
    return tuple(sorted(path.parent.name for path in found))


def usual() -> str:
    """The shipped model that is measured where none is named."""
    names = shipped()
    return _USUAL if _USUAL in names else names[0]


def choose(text: str) -> Choice:
    """``NAME`` or ``NAME@SIZE``. Raises BenchmarkError."""
    name, _, stated = text.partition("@")
    if name in shipped():
        size = Manifest.load(data_root() / "models" / name).preprocessing.height
        if stated not in ("", str(size)):
            raise BenchmarkError(f"{name} takes images of {size} x {size}, not {stated}")
        return Choice(name, size, made=False)
    if name not in MADE:
        raise BenchmarkError(
            f"there is no model {name!r}; choose one of {', '.join((*shipped(), *MADE))}, "
            "with @SIZE behind it for another image size"
        )
    size = _LENET_SIZE if name == "lenet" else _SIZE
    if stated:
        if not stated.isdecimal() or int(stated) % STEP or not STEP <= int(stated) <= _LARGEST:
            raise BenchmarkError(
                f"{text}: the size must be a multiple of {STEP} from {STEP} to {_LARGEST}"
            )
        size = int(stated)
    return Choice(name, size, made=True)


def cache_folder() -> Path:
    """Where made models are kept from one run to the next."""
    home = os.environ.get("XDG_CACHE_HOME")
    base = Path(home) if home else Path.home() / ".cache"
    return base / "radiopaque" / "benchmarks"


def obtain(choice: Choice, tell: Tell = lambda _: None) -> ModelSource:
    """The model's folder, made first where it is not in the cache. Raises BenchmarkError."""
    if not choice.made:
        return find_model(data_root() / "models" / choice.name)
    if importlib.util.find_spec("torch") is None:
        raise BenchmarkError(
            f"{choice} is made with torch, which is not installed; "
            "pip install 'radiopaque[bench]', or choose a shipped model"
        )
    folder = cache_folder() / f"{choice.name}-{choice.size}-{_digest(choice)[:16]}"
    if not (folder / MANIFEST_FILE).exists():
        tell(f"making {choice} (once; kept in {folder.parent})")
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".making-"))
        try:
            _make(choice, made)
            shutil.rmtree(folder, ignore_errors=True)
            made.rename(folder)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    return find_model(folder)


def sample_images(spec: Preprocessing, count: int | None = None) -> NDArray[np.float32]:
    """The committed samples, preprocessed [n, c, h, w]; over again where ``count`` is more."""
    files = image_files(data_root() / "samples" / "labelled")
    distinct = np.concatenate(list(tensors(files[:count], spec)))
    wanted = len(distinct) if count is None else count
    return distinct[np.arange(wanted) % len(distinct)]


def _digest(choice: Choice) -> str:
    """Of everything that a made model follows from."""
    digest = hashlib.sha256(
        f"{choice} {_SEED} torch {importlib.metadata.version('torch')}".encode()
    )
    sources = [Path(__file__).with_name(name) for name in _SOURCES]
    for path in (*sources, *image_files(data_root() / "samples" / "labelled")):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _make(choice: Choice, folder: Path) -> None:
    """Build, export, calibrate; the manifest comes last."""
    import torch

    from benchmarks.networks import CHANNELS, CLASSES, build

    size = choice.size
    spec = Preprocessing(CHANNELS, size, size, "stretch", "bilinear", (_MEAN,), (_STD,))
    images = sample_images(spec)
    # one thread sums in one order, whatever the machine
    torch.set_num_threads(1)
    model = build(choice.name, size, torch.from_numpy(images), _SEED)
    path = folder / "model.onnx"
    with warnings.catch_warnings():
        # the exporter that needs no further package is called deprecated
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            model,
            (torch.zeros(1, CHANNELS, size, size),),
            path,
            dynamo=False,
            opset_version=_OPSET,
            input_names=["image"],
            output_names=["logits"],
            dynamic_axes={"image": {0: "n"}, "logits": {0: "n"}},
        )
    manifest = Manifest(
        name=choice.name,
        version="1",
        onnx=path.name,
        sha256=file_digest(path),
        licence="Apache-2.0",
        task="multiclass",
        classes=tuple(f"class {number}" for number in range(CLASSES)),
        preprocessing=spec,
        description="Random weights, made to measure costs. It recognises nothing.",
        ranges=calibrate(path, np.split(images, len(images))),
    )
    manifest.save(folder / MANIFEST_FILE)
