"""The command line, with a network small enough to go the whole way in a test."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from flip_gate import flip_gate

from flows.main import main
from model.errors import RedcaneError
from model.files import digest
from model.qfile import load

ROOT = Path(__file__).parent.parent

TINY = """
name: tiny
dataset: digits
network: {image: [8, 8, 1], classes: 10, conv_channels: 4, conv_kernel: 3, primary_types: 2, primary_dim: 4,
          primary_kernel: 3, primary_stride: 3, class_dim: 4, iterations: 2}
train: {epochs: 4, patience: 4}
analyze: {noise_magnitudes: [0.2, 0.02, 0.0], seeds: [0], images: 100}
assign: {budget_points: 5.0, images: 32, measurements: 12}
simulate: {images: 2}
"""


def configure(folder: Path, text: str = TINY) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of runs with one that went all the way."""
    folder = tmp_path_factory.mktemp("finished")
    assert main(["run", str(configure(folder)), "--runs", str(folder)]) == 0
    return folder


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """A copy of it to spoil."""
    shutil.copytree(finished, tmp_path / "copy")
    return tmp_path / "copy"


def redcane(capsys: pytest.CaptureFixture[str], folder: Path, command: str, *options: str) -> tuple[int, str, str]:
    """Exit code, output, and what was said to stderr without the progress."""
    capsys.readouterr()
    code = main([command, str(folder / "tiny.yaml"), "--runs", str(folder), *options])
    output, errors = capsys.readouterr()
    return code, output, "\n".join(line for line in errors.splitlines() if line.startswith("redcane: "))


def test_layers_alone(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, output, _ = redcane(capsys, finished, "simulate", "--layer", "all", "--images", "2")
    assert code == 0
    header, _, *rows = [line.split() for line in output.splitlines()]
    assert [row[0] for row in rows] == ["conv1", "primary", "classcaps"]
    for row in rows:
        told = dict(zip(header, row, strict=True))
        assert (told["images"], told["differ"]) == ("2", "0")
        assert told["cycles"] == told["predicted"]
        assert 0 < float(told["use"].rstrip("%")) < 100
    assert "no value differs" in redcane(capsys, finished, "simulate", "--waves", "--images", "2")[1]
    code, _, error = redcane(capsys, finished, "simulate", "--layer", "conv9")
    assert (code, "layer 'conv9': the network has conv1, primary, classcaps" in error) == (2, True)


def test_everything_is_there(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = finished / "tiny"
    for name in (
        "network.safetensors",
        "resilience.json",
        "assignment.yaml",
        "rtl/redcane.v",
        "synthesis.json",
        "report.html",
    ):
        assert (run / name).is_file(), name
    verified = json.loads((run / "verify.json").read_text())
    assert verified["images"] == 2 and verified["mismatches"] == 0 and verified["values_compared"] > 500
    code, output, errors = redcane(capsys, finished, "run")
    assert (code, errors) == (0, "")
    for word in (
        "float",
        "8 bit, exact",
        "8 bit, assigned",
        "primary.mac",
        "saved",
        "0 mismatches",
        "cycles",
        "transistors",
        "report.html",
    ):
        assert word in output


def test_every_json_artefact_says_what_it_was_made_from(finished: Path) -> None:
    found = list((finished / "tiny").glob("*.json"))
    assert len(found) >= 6
    for path in found:
        content = json.loads(path.read_text())
        schemas = {"accuracy.json": 3, "selection.json": 3, "resilience.json": 2, "verify.json": 2}
        assert content["schema"] == schemas.get(path.name, 1)
        assert set(content["provenance"]) == {"made_from", "seed", "tools"}
        for name, hash in content["provenance"]["made_from"]["inputs"].items():
            assert digest(finished / "tiny" / name) == hash
    for folder in ("qmodel", "rtl"):
        assert (finished / "tiny" / folder / "provenance.json").is_file()


def test_a_finished_run_changes_nothing(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = digest(finished / "tiny")
    assert redcane(capsys, finished, "run")[0] == 0
    assert digest(finished / "tiny") == before


def test_the_same_configuration_gives_the_same_bytes(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configure(tmp_path)
    assert redcane(capsys, tmp_path, "run")[0] == 0
    one, other = finished / "tiny", tmp_path / "tiny"
    names = {path.relative_to(one) for path in one.rglob("*") if path.is_file()}
    assert names == {path.relative_to(other) for path in other.rglob("*") if path.is_file()}
    assert [name for name in names if (one / name).read_bytes() != (other / name).read_bytes()] == []


def test_the_report_needs_nothing_beside_it(finished: Path) -> None:
    page = (finished / "tiny" / "report.html").read_text()
    assert not re.search(r"""(?:src|href)=["'](?!data:)""", page) and "<script" not in page
    for word in (
        "primary.mac",
        "classcaps.agreement",
        "mul8u_exact",
        "requantizer_*",
        "data:image/svg+xml",
        "verify.json",
    ):
        assert word in page


def test_an_assignment_edited_by_hand_goes_through(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = copy / "tiny" / "assignment.yaml"
    assigned = yaml.safe_load(path.read_text())
    wild = ["mul8u_exact", "mul8u_e24", "mul8u_s09", "mul8u_e14", "mul8u_e20"]
    for place, (row, name) in enumerate(zip(assigned["operations"].values(), wild, strict=True)):
        row |= {"multiplier": name, "align": place % 2}
    path.write_text(yaml.safe_dump(assigned))
    edited = path.read_bytes()
    assert redcane(capsys, copy, "simulate") == (0, "", "")
    assert path.read_bytes() == edited
    verified = json.loads((copy / "tiny" / "verify.json").read_text())
    assert verified["mismatches"] == 0 and sorted(verified["multipliers"]) == sorted(wild)
    products = load(copy / "tiny" / "qmodel").products()
    assert [(p.component, p.align) for _, p, _ in products] == list(zip(wild, (0, 1, 0, 1, 0), strict=True))
    code, shown, _ = redcane(capsys, copy, "run")
    assert code == 0 and re.search(r"conv1\.mac .* mul8u_exact +sign-magnitude, bottom\n", shown)
    assert re.search(r"primary\.mac .* mul8u_e24 +sign-magnitude\n", shown)


def test_a_flipped_gate_is_found(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    multiplier = max((copy / "tiny" / "rtl").glob("mul8u_*.v"), key=lambda file: file.stat().st_size)
    multiplier.write_text(flip_gate(multiplier.read_text(), 3))
    for _ in range(2):  # it fails again when nothing changed
        code, _, errors = redcane(capsys, copy, "simulate")
        assert code == 1
        where = r"image \d+, boundary \S+, index \[[\d, ]*\], expected -?\d+, got -?\d+"
        assert re.fullmatch(rf"redcane: simulate: \d+ of \d+ values differ .*; first difference: {where}", errors), (
            errors
        )
    assert redcane(capsys, copy, "report")[0] == 1


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("primary.mac:", "primary.mack:", "did you mean primary.mac?"),
        ("library: embedded", "library: other", "the library of this run is embedded"),
        ("{multiplier: mul8u_", "{multiplier: mul9u_", "no component mul9u_"),
        ("format: sign-magnitude", "format: sign", "sign-magnitude or affine"),
        ("operations:", "operations: [", "assignment.yaml: line"),
    ],
)
def test_a_wrong_assignment(copy: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, sentence: str) -> None:
    path = copy / "tiny" / "assignment.yaml"
    path.write_text(path.read_text().replace(old, new, 1))
    before = digest(copy / "tiny")
    code, _, errors = redcane(capsys, copy, "run")
    assert code == 2 and sentence in errors and errors.count("\n") == 0
    assert digest(copy / "tiny") == before


@pytest.mark.parametrize(
    "artefact",
    [
        "network.safetensors",
        "resilience.json",
        "qmodel/network.json",
        "qmodel/tensors.safetensors",
        "rtl/accelerator.json",
        "rtl/redcane.v",
        "verify.json",
    ],
)
def test_a_truncated_artefact(copy: Path, capsys: pytest.CaptureFixture[str], artefact: str) -> None:
    path = copy / "tiny" / artefact
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    code, _, errors = redcane(capsys, copy, "run")
    assert code == 2 and errors.count("\n") == 0 and artefact.split("/")[-1].split(".")[0] in errors


def test_deleted_artefacts_come_back_the_same(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = digest(copy / "tiny")
    for name in ("resilience.json", "selection.json", "report.html"):
        (copy / "tiny" / name).unlink()
    shutil.rmtree(copy / "tiny" / "rtl")
    assert redcane(capsys, copy, "run")[0] == 0
    assert digest(copy / "tiny") == before


@pytest.mark.parametrize(
    ("change", "options", "sentence"),
    [
        (("epochs: 4", "epocs: 4"), (), "train.epocs: unknown key; did you mean epochs?"),
        (("conv_kernel: 3", "conv_kernel: 9"), (), "too small for kernels"),
        (("classes: 10", "classes: 9"), (), "made for images"),
        (
            ("iterations: 2}", "iterations: 2}\nquantize: {formats: {conv.mac: affine}}"),
            (),
            "conv.mac: no such operation",
        ),
        (
            ("iterations: 2}", "iterations: 2}\nquantize: {formats: {classcaps.agreement: affine}}"),
            (),
            "read the same votes",
        ),
        (("epochs: 4", "epochs: 4, reconstruction: 0.1"), (), "the network has no decoder"),
        (("", ""), ("--library", "nonsense"), "there is no library `nonsense`"),
        (("", ""), ("--liberty", "no.lib"), "no.lib: no such file"),
        (("", ""), ("--images", "0"), "simulate.images: 0 is wrong"),
        (("dataset: digits", "dataset: mnist"), ("--data", "nowhere"), "nowhere/mnist: no such folder"),
    ],
)
def test_bad_input_is_told_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: tuple[str, str], options: tuple[str, ...], sentence: str
) -> None:
    configure(tmp_path, TINY.replace(*change) if change[0] else TINY)
    code, output, errors = redcane(capsys, tmp_path, "run", *options)
    assert (code, output) == (2, "") and sentence in errors and errors.count("\n") == 0
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_truncated_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mnist").mkdir()
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (tmp_path / "mnist" / f"{name}-ubyte.gz").write_bytes(gzip.compress(bytes(100))[:20])
    configure(tmp_path, TINY.replace("dataset: digits", "dataset: mnist"))
    code, _, errors = redcane(capsys, tmp_path, "run", "--data", str(tmp_path))
    assert code == 2 and "ubyte.gz" in errors and errors.count("\n") == 0


def test_a_missing_tool_is_told_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    code, _, errors = redcane(capsys, tmp_path, "run")
    assert code == 2 and "g++ and make and perl" in errors and "apt install g++ make perl" in errors
    assert not list(tmp_path.rglob("*.safetensors"))


def test_operations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, output, _ = redcane(capsys, configure(tmp_path).parent, "operations")
    assert code == 0
    row = next(line.split() for line in output.splitlines() if line.startswith("conv1") and " mac " in line)
    assert row[-5] == f"{6 * 6 * 4 * 9:,}"  # multiplications: outputs times kernel
    assert output.splitlines()[-1].startswith("total")


def test_libraries(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDCANE_HOME", str(tmp_path / "home"))
    (tmp_path / "mine").mkdir()
    text = "module mine(input [7:0] A, input [7:0] B, output [15:0] O); assign O = A * B; endmodule\n"
    (tmp_path / "mine" / "mine.v").write_text(text)
    assert main(["library", "import", str(tmp_path / "mine"), "--name", "own"]) == 2
    assert "--signed or --unsigned" in capsys.readouterr().err
    assert main(["library", "import", str(tmp_path / "mine"), "--name", "own", "--unsigned"]) == 0
    capsys.readouterr()
    assert main(["library", "list"]) == 0
    output = capsys.readouterr().out
    assert "mul8u_exact" in output and "\nmine " in output
    (tmp_path / "mine" / "clocked.v").write_text(
        "module clocked(input clk, input [7:0] A, input [7:0] B, output reg [15:0] O);\n"
        "always @(posedge clk) O <= A * B;\nendmodule\n"
    )
    assert main(["library", "import", str(tmp_path / "mine"), "--name", "worse"]) == 2
    assert "flip-flop" in capsys.readouterr().err
    assert main(["library", "list", "--library", "worse"]) == 2


def start(folder: Path, command: str, config: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "flows.main", command, str(config), "--runs", str(folder)],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def wait_for(condition: Path, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        if condition.exists() or process.poll() is not None:
            return
        time.sleep(0.05)
    raise AssertionError(f"{condition} did not appear")


def test_training_killed_and_interrupted_goes_on(finished: Path, tmp_path: Path) -> None:
    """SIGKILL, then Ctrl-C, then to the end: the weights are those of a training left alone."""
    configure(tmp_path)
    checkpoint = tmp_path / "tiny" / ".partial" / "training.safetensors"
    process = start(tmp_path, "train", tmp_path / "tiny.yaml")
    wait_for(checkpoint, process)
    process.kill()
    process.communicate()
    process = start(tmp_path, "train", tmp_path / "tiny.yaml")
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith(b"[train"):
            break
    process.send_signal(signal.SIGINT)
    errors = process.communicate()[1].decode()
    # 0: it was through before the signal came; -SIGINT: the signal met an `exec` inside a library, after which Python
    # ends by that signal whatever we return (130 too, to a shell)
    assert process.returncode in (130, -signal.SIGINT, 0), errors
    if process.returncode != 0:
        assert "redcane: stopped; the same command goes on from here" in errors and "Traceback" not in errors
    assert main(["train", str(tmp_path / "tiny.yaml"), "--runs", str(tmp_path)]) == 0
    for name in ("network.safetensors", "training.json"):
        assert (tmp_path / "tiny" / name).read_bytes() == (finished / "tiny" / name).read_bytes()
    assert not list((tmp_path / "tiny").glob(".work.*")) and not checkpoint.exists()


def test_the_command_line_is_there_before_anything_slow_is() -> None:
    """So that Ctrl-C is answered, and `--help`, while NumPy and torch are not loaded yet."""
    ask = "import sys, flows.main; print(sorted({'numpy', 'torch', 'pydantic', 'amaranth'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, RedcaneError, OSError])
def test_an_interruption_of_which_a_library_makes_an_error_is_one(
    error: type[BaseException], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As pydantic's serializer does, and extension modules that are being imported."""

    def command(chosen: object) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise error("of a library") from None

    monkeypatch.setattr("flows.main._stage", command)
    code, _, errors = redcane(capsys, configure(tmp_path).parent, "train")
    assert (code, errors) == (130, "redcane: stopped; the same command goes on from here")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.slow
def test_the_digits_killed_in_every_stage_end_the_same(tmp_path: Path) -> None:
    """`redcane run configs/digits.yaml` gets SIGKILL as soon as each stage has begun, and a little into it."""
    config = ROOT / "configs" / "digits.yaml"
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main(["run", str(config), "--runs", str(whole)]) == 0
    for stage in ("train", "analyze", "assign", "quantize", "generate", "simulate", "synthesize", "report"):
        for delay in (0.0, 0.3, 1.5):
            process = start(killed, "run", config)
            assert process.stderr is not None
            for line in process.stderr:
                if line.startswith(f"[{stage}".encode()):
                    break
            time.sleep(delay)
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert main(["run", str(config), "--runs", str(killed)]) == 0
    assert digest(killed / "digits") == digest(whole / "digits")
