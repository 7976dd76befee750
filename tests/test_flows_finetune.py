"""`redcane finetune`: where it stands among the stages, and that it is off unless it is asked for."""

import json
from pathlib import Path

import pytest

from flows.config import Config
from flows.main import main
from model.files import digest

TINY = """
name: tiny
dataset: digits
copies: 0
network: {image: [8, 8, 1], classes: 10, conv_channels: 4, conv_kernel: 3, primary_types: 2, primary_dim: 4,
          primary_kernel: 3, primary_stride: 3, class_dim: 4, iterations: 2}
train: {epochs: 4, patience: 4}
analyze: {noise_magnitudes: [0.02, 0.0], seeds: [0], images: 100}
assign: {budget_points: 5.0, images: 32, measurements: 12}
"""
AGGRESSIVE = """
schema: 1
library: embedded
operations:
  conv1.mac: {multiplier: mul8u_e15, format: sign-magnitude}
  primary.mac: {multiplier: mul8u_e15, format: sign-magnitude}
  classcaps.votes: {multiplier: mul8u_e15, format: sign-magnitude}
  classcaps.weighted_sum: {multiplier: mul8u_e15, format: sign-magnitude}
  classcaps.agreement: {multiplier: mul8u_e15, format: sign-magnitude}
"""


def test_finetune_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(TINY)

    def redcane(command: str, *options: str) -> str:
        assert main([command, str(config), "--runs", str(tmp_path), *options]) == 0
        return capsys.readouterr().err

    run = tmp_path / "tiny"
    redcane("quantize")
    (run / "assignment.yaml").write_text(AGGRESSIVE)
    assert "finetune" not in redcane("quantize"), "it is off unless it is asked for"
    assigned = json.loads((run / "accuracy.json").read_text())["assigned"]
    plain = digest(run / "qmodel" / "tensors.safetensors")

    assert main(["finetune", str(config), "--runs", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    accuracy = json.loads((run / "accuracy.json").read_text())
    assert accuracy["assigned"] == assigned
    assert accuracy["finetuned"]["validation"] > assigned["validation"]
    assert f"{100 * accuracy['finetuned']['test']:.2f} %" in output and "--finetune 3" in output
    tuned = digest(run / "qmodel" / "tensors.safetensors")
    assert tuned != plain
    history = json.loads((run / "finetuning.json").read_text())["history"]
    assert len(history["loss"]) == 3

    again = redcane("quantize", "--finetune", "3")
    assert "finetune: up to date" in again and "quantize: up to date" in again
    redcane("quantize")
    assert digest(run / "qmodel" / "tensors.safetensors") == plain, "switched off, it leaves no trace"


def test_the_recipe_is_that_of_training(tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY + "finetune: {epochs: 7, learning_rate: 0.01}\n")
    config = Config.load(path)
    recipe = config.finetuning()
    assert (recipe.epochs, recipe.learning_rate, recipe.patience, recipe.reconstruction) == (7, 0.01, 7, 0.0)
    assert (recipe.batch, recipe.shift, recipe.seed) == (config.recipe().batch, config.recipe().shift, config.seed)


def test_what_is_trusted_to_come_back_may_be_lost_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "tiny.yaml"
    text = TINY.replace("budget_points: 5.0", "budget_points: 0.0")

    def selected(finetune: str) -> tuple[float, str]:
        path.write_text(f"{text}finetune: {finetune}\n")
        assert main(["quantize", str(path), "--runs", str(tmp_path)]) == 0
        selection = json.loads((tmp_path / "tiny" / "selection.json").read_text())
        return selection["budget_points"], capsys.readouterr().err

    assert selected("{recovers_points: 60.0}")[0] == 0.0, "without fine-tuning nothing comes back"
    budget, told = selected("{epochs: 1, learning_rate: 1.0e-9, recovers_points: 60.0}")
    assert budget == 60.0
    accuracy = json.loads((tmp_path / "tiny" / "accuracy.json").read_text())
    lost = 100 * (accuracy["float"]["selection"] - accuracy["finetuned"]["selection"])
    assert lost > 0 and f"warning: fine-tuned, {lost:.2f} points are lost on the selection images" in told
