"""Hospitals on disk: keys, pictures, the list of members, the run, and each one's own file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from tests.unit.training.pictures import SIZE, picture
from training.flower.keys import make_coordinator_keys, make_site_keys
from training.flower.members import Members, assemble, to_toml

NAMES = ("elm", "oak", "yew")
PATIENTS = {"elm": range(8), "oak": range(100, 110), "yew": range(200, 212)}

RUN = """
mode = "federated"
seed = 5
threads = 1
[data]
image_size = {size}
[model]
options = {{ width = 2{options} }}
[training]
rounds = {rounds}
local_steps = {steps}
learning_rate = 0.05
{training}
[federation]
threshold = 2
"""

SITE = """
name = "{name}"
keys = "keys"
members = "../members.toml"
run = "../run.toml"
data = "data"
state = "state"
threads = 1
"""

PRIVACY = """
[privacy]
noise_multiplier = {noise}
clip_norm = 1.0
sample_rate = 0.3
epsilon = {epsilon}
delta = 1e-5
accountant = "rdp"
budget_folder = "budgets"
"""


@dataclass(frozen=True)
class Hospitals:
    """Where everything is."""

    root: Path
    members: Members

    @property
    def members_file(self) -> Path:
        return self.root / "members.toml"

    @property
    def run(self) -> Path:
        return self.root / "run.toml"

    @property
    def coordinator_keys(self) -> Path:
        return self.root / "coordinator" / "keys"

    @property
    def validation(self) -> Path:
        return self.root / "coordinator" / "validation"

    def site(self, name: str) -> Path:
        return self.root / name / "site.toml"

    def write_run(
        self, rounds: int = 2, steps: int = 2, options: str = "", training: str = ""
    ) -> None:
        text = RUN.format(size=SIZE, rounds=rounds, steps=steps, options=options, training=training)
        self.run.write_text(text)

    def write_privacy(self, name: str, noise: float = 1.0, epsilon: float = 8.0) -> None:
        text = SITE.format(name=name) + PRIVACY.format(noise=noise, epsilon=epsilon)
        self.site(name).write_text(text)


def write_pictures(folder: Path, patients: range) -> None:
    """Write a picture of each class for each patient, in NORMAL and PNEUMONIA."""
    for number in patients:
        for label, name in (
            (0, f"NORMAL/IM-{number:04d}-0001.png"),
            (1, f"PNEUMONIA/person{number}_bacteria_1.png"),
            (2, f"PNEUMONIA/person{number + 5000}_virus_1.png"),
        ):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture(label, number)).save(path)


def build(root: Path, port: int) -> Hospitals:
    """Three hospitals and a coordinator on this machine."""
    public = [make_coordinator_keys(root / "coordinator" / "keys", f"127.0.0.1:{port}")]
    for name in NAMES:
        public.append(make_site_keys(root / name / "keys", name))
        (root / name / "site.toml").write_text(SITE.format(name=name))
        write_pictures(root / name / "data" / "train", PATIENTS[name])
    write_pictures(root / "coordinator" / "validation", range(900, 908))
    members = assemble("trees", public)
    (root / "members.toml").write_text(to_toml(members))
    hospitals = Hospitals(root, members)
    hospitals.write_run()
    return hospitals
