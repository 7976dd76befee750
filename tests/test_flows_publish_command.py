"""`redcane publish`, and runs that begin with published weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flows.config import Config
from flows.main import main
from flows.run import Run
from model.datasets import load
from model.published import read_about
from model.training import accuracy

ROOT = Path(__file__).parent.parent
TINY = """
name: tiny
seed: 1
dataset: digits
network: {image: [8, 8, 1], classes: 10, conv_channels: 4, conv_kernel: 3, primary_types: 2, primary_dim: 4,
          primary_kernel: 3, primary_stride: 3, class_dim: 4, iterations: 2, decoder: [16]}
train: {epochs: 2, patience: 2, reconstruction: 0.0005}
"""


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a configuration and the weights that it names."""
    folder = tmp_path_factory.mktemp("published")
    (folder / "configs").mkdir()
    (folder / "configs" / "tiny.yaml").write_text(TINY + "weights: ../weights/tiny.safetensors\n")
    assert main(["publish", str(folder / "configs" / "tiny.yaml"), "--runs", str(folder / "trained")]) == 0
    return folder


def start(folder: Path, *options: str, text: str = TINY + "weights: ../weights/tiny.safetensors\n") -> int:
    """Train in the folder `runs`."""
    path = folder / "configs" / "other.yaml"
    path.write_text(text)
    return main(["train", str(path), "--runs", str(folder / "runs"), *options])


def test_a_run_begins_with_published_weights(published: Path) -> None:
    assert start(published) == 0
    about = read_about(published / "weights" / "tiny.safetensors")
    training = json.loads((published / "runs" / "tiny" / "training.json").read_text())
    assert training["published"] == about.model_dump(by_alias=True) and "history" not in training
    assert training["accuracy"] == about.stored.model_dump()  # measured anew
    assert about.recipe["train"]["epochs"] == 2  # type: ignore[index,call-overload]  # a JSON value
    assert len(training["provenance"]["made_from"]["settings"]["weights"]) == 64

    run = Run(Config.load(published / "configs" / "tiny.yaml"), published / "runs" / "tiny")
    network = run.network()
    assert network.decoder is None
    test = load("digits", seed=1).test
    assert accuracy(network, test.images, test.labels) == about.stored.test


def test_training_anew(published: Path) -> None:
    assert start(published, "--train-anew") == 0
    files = (published / name / "tiny" / "training.json" for name in ("runs", "trained"))
    ours, theirs = (json.loads(file.read_text()) for file in files)
    assert "published" not in ours
    assert (ours["history"], ours["accuracy"]) == (theirs["history"], theirs["accuracy"])
    assert theirs["accuracy"] == read_about(published / "weights" / "tiny.safetensors").trained.model_dump()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("weights: ../weights/none.safetensors\n", "no published weights; `redcane publish CONFIG`"),
        ("weights: other.yaml\n", "not a whole safetensors file"),
    ],
)
def test_weights_that_cannot_be_taken(
    published: Path, text: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(published, text=TINY + text) == 2
    assert sentence in capsys.readouterr().err


def test_another_seed_would_validate_on_training_images(published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = "weights: ../weights/tiny.safetensors\n"
    assert start(published, text=TINY.replace("seed: 1", "seed: 2") + weights) == 2
    assert "trained on digits with seed 1, but the configuration says digits and 2" in capsys.readouterr().err


def test_where_to_publish_has_to_be_said(published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (published / "configs" / "bare.yaml").write_text(TINY)
    assert main(["publish", str(published / "configs" / "bare.yaml"), "--runs", str(published / "trained")]) == 2
    assert "--to weights/x.safetensors" in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_our_published_weights_are_of_their_configurations(path: Path) -> None:
    config = Config.load(path)
    if config.weights is None:
        assert not (ROOT / "weights" / f"{path.stem}.safetensors").exists()
        return
    network, about = Run(config, path).published()
    assert about.name == config.name and network.shape == config.shape()
    assert about.recipe["network"] == config.model_dump()["network"]
    assert about.recipe["train"] == config.model_dump()["train"]
    assert about.stored.test > about.trained.test - 0.001
