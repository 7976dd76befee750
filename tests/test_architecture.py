"""The rooms: imports point one way, hardware and the integer reference load without torch, files stay small."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("model", "hw", "sim", "flows")  # each may import itself and those before it
FILES = [file for room in ROOMS for file in sorted((ROOT / room).rglob("*.py"))]


def imported(file: Path) -> set[str]:
    """The top-level packages that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative imports are not used here"
            found.add(str(node.module).split(".")[0])
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_point_one_way(file: Path) -> None:
    room = file.relative_to(ROOT).parts[0]
    later = set(ROOMS[ROOMS.index(room) + 1 :])
    assert not imported(file) & (later | {"tests", "benchmarks"})


def test_there_is_something_in_every_room() -> None:
    assert {file.relative_to(ROOT).parts[0] for file in FILES} == set(ROOMS)


def test_hardware_and_reference_load_without_torch() -> None:
    modules = [
        ".".join(file.relative_to(ROOT).with_suffix("").parts)
        for file in [
            *sorted((ROOT / "hw").rglob("*.py")),
            ROOT / "model" / "reference.py",
            ROOT / "model" / "qnetwork.py",
        ]
    ]
    code = "import sys; sys.modules['torch'] = None\n" + "\n".join(f"import {module}" for module in modules)
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_the_command_line_answers_without_torch() -> None:
    """Help and a wrong configuration should not cost two seconds of imports."""
    code = "import sys; sys.modules['torch'] = None\nfrom flows.main import main\nsys.exit(main(['run', 'nofile']))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr == "redcane: nofile: no such file\n"


def test_nothing_unsafe() -> None:
    """No pickle, no eval, no shell: what reads other people's files gives them no way in."""
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                assert name not in {"eval", "exec", "os.system", "torch.load", "pickle.load", "pickle.loads"}, (
                    f"{file}: {name}"
                )
                for keyword in node.keywords:
                    unsafe = (keyword.arg, ast.unparse(keyword.value)) in {("shell", "True"), ("allow_pickle", "True")}
                    assert not unsafe, f"{file}: {name}({keyword.arg}=True)"
