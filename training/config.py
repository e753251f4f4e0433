"""The configuration of a training run: one TOML file, in which an unknown key is an error."""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from training.augment import Augmentation
from training.errors import SettingsError

Share = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[int, Field(ge=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataSettings(_Section):
    """What is read. `unreadable` images are skipped with a count, or refused."""

    image_size: Annotated[int, Field(ge=16, le=1024)] = 224
    validation_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    unreadable: Literal["skip", "refuse"] = "skip"


class ModelSettings(_Section):
    """A network of `training.networks` and its options, for instance `width = 32`."""

    name: str = "resnet18"
    options: dict[str, bool | int | float | str | list[int]] = Field(default_factory=dict)


class Stage(_Section):
    """So many rounds on images of `size` x `size` pixels."""

    size: Annotated[int, Field(ge=16, le=1024)]
    rounds: Positive


class OptimiserSettings(_Section):
    """SGD with momentum on each site; momentum starts anew every round.

    Biases and the parameters of norms are not decayed. Progressive image sizes (`stages`) are those
    of Howard, "fast.ai DAWNBench", 2018: most rounds are cheap ones on smaller images.
    """

    rounds: Annotated[int, Field(ge=1, le=100_000)] = 30
    stages: tuple[Stage, ...] = ()
    """Sizes of the images in turn, the last one `data.image_size`; none means that size only."""
    local_steps: Annotated[int, Field(ge=0)] = 0
    """Steps of a site in a round; 0 means once through its images."""
    batch_size: Positive = 32
    learning_rate: Annotated[float, Field(gt=0.0)] = 0.05
    schedule: Literal["constant", "cosine"] = "cosine"
    warm_up: Share = 0.1
    momentum: Share = 0.9
    nesterov: bool = True
    weight_decay: Annotated[float, Field(ge=0.0)] = 5e-4
    label_smoothing: Share = 0.0
    class_weights: bool = True
    max_gradient_norm: Annotated[float, Field(ge=0.0)] = 0.0
    """Longer gradients of a batch are cut to this length; 0 cuts none."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the products in training; weights, sums and validation are float32 either way."""
    patience: Annotated[int, Field(ge=0)] = 0
    """Rounds without a better validation AUC after which training stops; 0 means never."""

    @model_validator(mode="after")
    def _check(self) -> OptimiserSettings:
        total = sum(stage.rounds for stage in self.stages)
        if self.stages and total != self.rounds:
            raise ValueError(f"the stages have {total} rounds in all; set rounds = {total}")
        if self.nesterov and "nesterov" in self.model_fields_set and not self.momentum:
            raise ValueError("nesterov has no effect without momentum; take it out")
        return self


class AugmentationSettings(_Section):
    """Largest random changes; 0 switches one off. `mixup` is the alpha of its beta distribution."""

    rotation: Annotated[float, Field(ge=0.0, le=90.0)] = 10.0
    zoom: Share = 0.12
    stretch: Share = 0.15
    shift: Share = 0.06
    contrast: Share = 0.25
    brightness: Share = 0.12
    gamma: Share = 0.25
    noise: Share = 0.0
    mixup: Annotated[float, Field(ge=0.0, le=10.0)] = 0.0

    def affine(self) -> Augmentation:
        """The part that `training.augment` does."""
        return Augmentation(**self.model_dump(exclude={"noise", "mixup"}))


class FederationSettings(_Section):
    """How the training folder is cut into sites, and how their updates are summed."""

    sites: Annotated[int, Field(ge=1, le=255)] = 3
    split: Literal["iid", "class", "size"] = "iid"
    skew: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    """0 is IID; 1 gives a class to one site alone, or every site half of what is left."""
    secure_aggregation: bool = True
    threshold: Annotated[int, Field(ge=0)] = 0
    """Sites that must stay to the end of a round; 0 means two thirds and one."""

    @model_validator(mode="after")
    def _check(self) -> FederationSettings:
        if self.secure_aggregation and self.sites < 3:
            raise ValueError("secure aggregation needs at least 3 sites")
        if self.threshold > self.sites:
            raise ValueError(f"threshold {self.threshold} exceeds the {self.sites} sites")
        if self.threshold and self.threshold <= self.sites // 2:
            raise ValueError("threshold must be more than half of the sites, or 0")
        return self


class SitePrivacy(_Section):
    """What one site sets for itself; what is left out is as for all."""

    noise_multiplier: Annotated[float, Field(gt=0.0)] | None = None
    clip_norm: Annotated[float, Field(gt=0.0)] | None = None
    sample_rate: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    epsilon: Annotated[float, Field(gt=0.0)] | None = None
    delta: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None


class PrivacySettings(_Section):
    """DP-SGD at every site; `training.dp` and `training.budget` say what the figures mean.

    `budget_folder` keeps a file per site. It belongs to the images: use the same one for every
    training on them.
    """

    noise_multiplier: Annotated[float, Field(gt=0.0)]
    clip_norm: Annotated[float, Field(gt=0.0)] = 1.0
    sample_rate: Annotated[float, Field(gt=0.0, le=1.0)]
    epsilon: Annotated[float, Field(gt=0.0)]
    delta: Annotated[float, Field(gt=0.0, lt=1.0)] = 1e-5
    accountant: Literal["prv", "rdp"] = "prv"
    budget_folder: Path
    sites: dict[str, SitePrivacy] = Field(default_factory=dict)

    def of(self, site: str) -> PrivacySettings:
        """The settings of one site."""
        own = self.sites.get(site, SitePrivacy()).model_dump(exclude_none=True)
        return self.model_copy(update=own)


# On maps of a single pixel, the bfloat16 gradient of a convolution with stride 2 contains memory
# that was never written (torch 2.13 with oneDNN): it is now and then not a number.
_SMALLEST_BFLOAT16 = 32


class SearchKey(_Section):
    """The values that a search may give to one key: from `low` to `high`, or one of `choices`."""

    low: int | float | None = None
    high: int | float | None = None
    log: bool = False
    choices: tuple[bool | int | float | str, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> SearchKey:
        if self.choices:
            if {"low", "high", "log"} & self.model_fields_set:
                raise ValueError("give either choices, or low and high")
            return self
        if self.low is None or self.high is None:
            raise ValueError("give low and high, or choices")
        if self.low >= self.high:
            raise ValueError(f"low {self.low} is not less than high {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"low {self.low} has no logarithm; take one above 0, or log = false")
        return self

    def extremes(self) -> tuple[bool | int | float | str, ...]:
        """All choices, or both ends."""
        return self.choices or tuple(end for end in (self.low, self.high) if end is not None)


class OutputSettings(_Section):
    """What the result is called and what its card says; decides nothing in training.

    `data_set` is what DATA holds: "kermany", the published images of Kermany et al., whose source,
    licence and known faults the card then states, or "own".
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")] | None = None
    version: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")] = "1.0.0"
    description: Annotated[str, Field(max_length=2000)] = ""
    data_set: Literal["kermany", "own"] = "own"
    weights: Literal["auto", "float32"] = "auto"
    """How weights are stored; "auto" halves the file where that moves no logit noticeably."""
    tensorboard: bool = False
    """Whether the figures of rounds are written for TensorBoard, too."""


# What DP-SGD does not do, so that nobody believes it did.
_NOT_PRIVATE = (
    "batch_size",
    "stages",
    "schedule",
    "warm_up",
    "nesterov",
    "label_smoothing",
    "class_weights",
    "max_gradient_norm",
    "precision",
)


class TrainingSettings(_Section):
    """The whole file."""

    mode: Literal["local", "federated"] = "local"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 2024
    threads: Annotated[int, Field(ge=1, le=256)] = 2
    data: DataSettings = DataSettings()
    model: ModelSettings = ModelSettings()
    training: OptimiserSettings = OptimiserSettings()
    augmentation: AugmentationSettings = AugmentationSettings()
    federation: FederationSettings | None = None
    privacy: PrivacySettings | None = None
    output: OutputSettings = OutputSettings()
    search: dict[str, SearchKey] = Field(default_factory=dict)
    """What a search varies, such as "training.learning_rate"; see `training.search`."""

    @model_validator(mode="after")
    def _check(self) -> TrainingSettings:
        if self.mode == "local" and self.federation is not None:
            raise ValueError('[federation] has no effect in mode = "local"; take it out')
        size = self.data.image_size
        if self.stages[-1].size != size:
            raise ValueError(
                f"training.stages ends with {self.stages[-1].size} pixels, data.image_size is "
                f"{size}; both say what the network is for, make them equal"
            )
        smallest = min(stage.size for stage in self.stages)
        if self.training.precision == "bfloat16" and smallest < _SMALLEST_BFLOAT16:
            raise ValueError(
                f'images of {smallest} pixels cannot be trained on with precision = "bfloat16"; '
                f'the least is {_SMALLEST_BFLOAT16}, or take "float32"'
            )
        if self.privacy is not None:
            self._check_privacy(self.privacy)
        return self

    def _check_privacy(self, privacy: PrivacySettings) -> None:
        ignored = sorted(self.training.model_fields_set & set(_NOT_PRIVATE))
        if ignored:
            raise ValueError(f"training.{', training.'.join(ignored)}: no effect with [privacy]")
        if "augmentation" in self.model_fields_set:
            raise ValueError("[augmentation] has no effect with [privacy]; take it out")
        if self.training.local_steps == 0:
            raise ValueError("[privacy] needs training.local_steps, the private steps of a round")
        strangers = sorted(set(privacy.sites) - set(self.site_names))
        if strangers:
            raise ValueError(f"privacy.sites names {', '.join(strangers)}, which do not exist")

    @property
    def site_names(self) -> tuple[str, ...]:
        """site-1 and so on."""
        return tuple(f"site-{number + 1}" for number in range(self.site_count))

    @property
    def site_count(self) -> int:
        """Sites that train: one in local mode."""
        return self.federation_or_default().sites if self.mode == "federated" else 1

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Sizes of the images in turn, with their rounds; at least one."""
        settings = self.training
        return settings.stages or (Stage(size=self.data.image_size, rounds=settings.rounds),)

    def size_in(self, number: int) -> int:
        """Height and width of the images in a round, counted from 0."""
        for stage in self.stages:
            if number < stage.rounds:
                return stage.size
            number -= stage.rounds
        return self.data.image_size

    def federation_or_default(self) -> FederationSettings:
        """The section, or its defaults."""
        return self.federation or FederationSettings()

    def digest(self) -> str:
        """SHA-256, hexadecimal, of all that decides the result: not of threads or names."""
        text = self.model_dump_json(exclude={"threads", "output"})
        return hashlib.sha256(text.encode()).hexdigest()


def load_settings(path: Path) -> TrainingSettings:
    """Read a configuration file.

    Raises:
        SettingsError: it is missing, not TOML, or a key is unknown or out of range; names each.
    """
    return settings_from(read_values(path), str(path))


def read_values(path: Path) -> dict[str, Any]:
    """Read a configuration file without checking what it says.

    Raises:
        SettingsError: it is missing or not TOML.
    """
    try:
        values: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SettingsError(f"there is no file {path}; pass a TOML file as --config") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"{path} cannot be read as TOML: {error}") from error
    return values


def settings_from(values: dict[str, Any], source: str) -> TrainingSettings:
    """Check the content of a configuration file; `source` is what errors call it.

    Raises:
        SettingsError: a key is unknown or out of range; names each.
    """
    try:
        return TrainingSettings.model_validate(values)
    except ValidationError as error:
        problems = [
            f"{'.'.join(str(part) for part in problem['loc']) or 'file'}: {problem['msg']}"
            for problem in error.errors()
        ]
        raise SettingsError(f"{source}: " + "; ".join(problems)) from error
