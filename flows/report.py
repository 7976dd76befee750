"""The report: one HTML file that needs nothing beside it."""

from __future__ import annotations

import base64
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from flows.fpga import in_words
from flows.run import Run
from flows.stage import Json
from flows.summary import NETWORKS, Facts
from model.files import digest, read_bounded
from model.operations import GROUPS

_SVG_LIMIT = 16 * 2**20


@dataclass(frozen=True)
class Part:
    """Modules of one kind in the synthesis table: the same name but for a number."""

    name: str
    instances: int
    module: dict[str, Any]  # the first of them; the others are alike


def report(run: Run, about: Json) -> str:
    """report.html of a run whose other artefacts are made; `about` is the report's own provenance."""
    facts = Facts(run)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"percent": _percent, "number": "{:,.0f}".format}
    return environment.get_template("report.html.j2").render(
        facts=facts,
        run=run,
        config=run.config,
        groups=GROUPS,
        networks=NETWORKS,
        final=facts.accuracy.get("finetuned", facts.accuracy["assigned"]),
        plots=[_image(run.folder / f"resilience-{name}.svg") for name in ("groups", "layers")],
        parts=parts(facts.synthesis),
        fpga=in_words(facts.synthesis["fpga"]) if facts.synthesis["fpga"] else None,
        artefacts={name: digest(run.folder / name) for name in about["made_from"]["inputs"]},
        about=about,
    )


def parts(synthesis: dict[str, Any]) -> list[Part]:
    """The modules of a synthesis, those that differ by a number only taken together, the largest first."""
    alike: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for name, module in synthesis["modules"].items():
        plain = re.sub(r"\$\d+$", "", name.removeprefix(f"{synthesis['top']}."))
        alike[re.sub(r"(?<=_)\d+(?=\.|$)", "*", plain)].append(module)
    rows = [Part(name, sum(m["instances"] for m in modules), modules[0]) for name, modules in alike.items()]
    return sorted(rows, key=lambda part: (-part.module["transistors"], -part.module["memory_bits"], part.name))


def _percent(fraction: float, digits: int = 2) -> str:
    return f"{100 * fraction:.{digits}f} %"


def _image(path: Path) -> str:
    """A plot as a data URL: inside <img>, whatever an SVG may contain cannot run."""
    return "data:image/svg+xml;base64," + base64.b64encode(read_bounded(path, _SVG_LIMIT)).decode()
