"""The stages of a run: what each reads, what it makes, what else it depends on."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm  # type: ignore[import-untyped]  # it has no stubs

from flows.executors import workers
from flows.fpga import estimate
from flows.report import report
from flows.run import Run
from flows.selected import costs_of, selected
from flows.stage import PARTIAL, Failed, Json, Pipeline, Stage
from flows.synthesize import find_liberty, synthesize
from flows.tools import need_simulator, need_yosys
from hw.generate import generate
from model.assignment import assignment, load_assignment, save_assignment
from model.datasets import Dataset, Split
from model.deepcaps import DeepCaps, DeepCapsShape
from model.emulation import Emulator
from model.files import digest, write_atomic
from model.finetune import finetune, with_weights
from model.network import Network
from model.nextpnr import nextpnr_version
from model.qfile import save
from model.qnetwork import QNetwork
from model.quantize import image_codes
from model.resilience import analyze, subject
from model.resilience_plots import plot_groups, plot_layers
from model.selection import ROUNDING
from model.store import Store
from model.training import accuracy, initial, train
from model.weights import save_weights
from sim.runner import BenchFailed
from sim.structure import check_products
from sim.verify import verify


def write_json(path: Path, content: dict[str, Any], about: Json) -> None:
    """An artefact in JSON, with its provenance; the same bytes for the same content."""
    write_atomic(path, json.dumps({**content, "provenance": about}, indent=1) + "\n")


def _partial(run: Run, name: str) -> Path:
    """A file in which a long stage remembers how far it came, so that a killed one goes on."""
    folder = run.folder / PARTIAL
    folder.mkdir(exist_ok=True)
    return folder / name


def accuracies(network: Network, dataset: Dataset) -> dict[str, float]:
    """Fractions of the validation and of the test images that the float network classifies right."""
    splits = {"validation": dataset.validation, "test": dataset.test}
    return {name: accuracy(network, split.images, split.labels) for name, split in splits.items()}


def _train(run: Run, scratch: Path, about: Json) -> None:
    checkpoint = _partial(run, "training.safetensors")
    if run.config.weights is not None:
        network, published = run.published()
        made: Json = {"published": published.model_dump(by_alias=True)}
    else:
        network = initial(run.config.shape(), run.config.seed)
        history = train(network, run.dataset, run.config.recipe(), checkpoint, run.config.train.device)
        made = {"history": asdict(history)}
    if isinstance(network, DeepCaps):
        network.even_channels()
    measured = {"accuracy": accuracies(network, run.dataset), "parameters": network.encoder_parameters()}
    # one entry only: safetensors writes several in a random order
    save_weights(network, scratch / "network.safetensors", {"provenance": json.dumps(about)})
    write_json(scratch / "training.json", {"schema": 1, **measured, **made}, about)
    if run.config.weights is None:
        checkpoint.unlink(missing_ok=True)


def _training(run: Run) -> Json:
    """What the weights depend on beside the data: the recipe, or the published file."""
    network = run.config.model_dump()["network"]
    made: Json = {"channels": "even"} if isinstance(run.config.shape(), DeepCapsShape) else {}
    if run.config.weights is not None:
        return {"network": network, "weights": digest(run.weights_file()), **made}
    return {"network": network, "train": run.config.model_dump()["train"], **made}


def _analyze(run: Run, scratch: Path, about: Json) -> None:
    network, settings = run.network(), run.config.resilience()
    store = Store(_partial(run, "analysis.sqlite"))
    with workers(subject(network, run.selection_images, settings), run.workers, run.scheduler) as measuring:
        result = analyze(network, run.selection_images, settings, store, measuring)
    write_json(scratch / "resilience.json", result.to_json(), about)
    plot_groups(result, scratch / "resilience-groups.svg")
    plot_layers(result, scratch / "resilience-layers.svg")
    store.delete()


def _integer_accuracy(network: QNetwork, split: Split) -> float:
    """Fraction of a split's images that the integer network classifies right."""
    classes = Emulator(network).classify(image_codes(network, split.images))
    return float((classes == split.labels).mean())


def _integer_accuracies(run: Run, network: QNetwork) -> dict[str, float]:
    """Of all that accuracy.json tells; the selection images are measured once where they are the validation images."""
    validation = _integer_accuracy(network, run.dataset.validation)
    selection = _integer_accuracy(network, run.selection_images) if run.config.copies else validation
    return {"selection": selection, "validation": validation, "test": _integer_accuracy(network, run.dataset.test)}


def _assign(run: Run, scratch: Path, about: Json) -> None:
    library, formats = run.library, run.config.formats()
    exact = run.quantized(formats)
    made_from = about["made_from"]
    measured = {name: value for name, value in made_from["settings"].items() if name not in ("assign", "may_lose")}
    made_of = [made_from["version"], made_from["inputs"]["network.safetensors"], measured]
    identity = digest(json.dumps(made_of, sort_keys=True).encode())
    known = _partial(run, f"measurements-{identity[:16]}.jsonl")
    selection = selected(run, exact, known, tell)
    if selection.warning:
        tell(f"warning: {selection.warning}")
    save_assignment(scratch / "assignment.yaml", assignment(selection, formats, library))
    write_json(scratch / "selection.json", {"schema": 3, **asdict(selection)}, about)
    known.unlink(missing_ok=True)


def _assigned(run: Run) -> tuple[QNetwork, QNetwork]:
    """The 8-bit network with exact multipliers, as configured, and with what assignment.yaml says, fitted to it."""
    assigned = load_assignment(run.folder / "assignment.yaml", list(run.config.formats()), run.library)
    tables = {name: component.table for name, component in run.library.components.items()}
    exact = run.quantized(assigned.formats)
    placed = run.quantized(assigned.formats, assigned.aligns) if assigned.aligns else exact
    return exact, run.fitted(placed.with_components(assigned.components, tables))


def _finetune(run: Run, scratch: Path, about: Json) -> None:
    network, (_, assigned) = run.network(), _assigned(run)
    checkpoint = _partial(run, "finetuning.safetensors")
    distill = run.config.finetune.distill
    history, before = finetune(network, assigned, run.dataset, run.config.finetuning(), checkpoint, distill)
    content = {"schema": 1, "validation_before": before[0], "validation_loss_before": before[1]}
    save_weights(network, scratch / "finetuned.safetensors", {"provenance": json.dumps(about)})
    write_json(scratch / "finetuning.json", {**content, "history": asdict(history)}, about)
    checkpoint.unlink(missing_ok=True)


def _quantize(run: Run, scratch: Path, about: Json) -> None:
    exact, network = _assigned(run)
    networks = {"exact_8_bit": exact, "assigned": network}
    if run.config.finetune.epochs:
        networks["finetuned"] = network = with_weights(network, run.network("finetuned.safetensors"))
    measured = {name: _integer_accuracies(run, n) for name, n in networks.items()}
    on = run.selection_images
    floating = {
        **run.read("training.json", "accuracy")["accuracy"],
        "selection": accuracy(run.network(), on.images, on.labels),
    }
    lost = 100 * (floating["selection"] - list(measured.values())[-1]["selection"])
    if run.config.finetune.epochs and lost > run.config.assign.budget_points + ROUNDING:
        tell(
            f"warning: fine-tuned, {lost:.2f} points are lost on the selection images, more than the budget of "
            f"{run.config.assign.budget_points:g}: more finetune.epochs or less finetune.recovers_points may keep it"
        )
    content = {"schema": 3, "float": floating, **measured, "costs": _costs(run, exact, network)}
    write_json(scratch / "accuracy.json", content, about)
    save(network, scratch / "qmodel")
    write_json(scratch / "qmodel" / "provenance.json", {}, about)


def _costs(run: Run, exact: QNetwork, network: QNetwork) -> Json:
    """What an inference's multiplications cost in each operation, with the operands that it really has: of the network
    with exact multipliers, as it is configured, and of the final one.
    """
    costs = {name: costs_of(run, n, run.captures(n)) for name, n in (("exact", exact), ("assigned", network))}
    used = {name: {key: product.component for key, product, _ in n.products()}
            for name, n in (("exact", exact), ("assigned", network))}  # fmt: skip
    spent = {key: {name: costs[name].by_operation[key][used[name][key]] for name in costs} for key in used["exact"]}
    return {"name": costs["exact"].name, "total": costs["exact"].total, "operations": spent}


def _generate(run: Run, scratch: Path, about: Json) -> None:
    (scratch / "rtl").mkdir()
    generate(run.qnetwork(), run.library.components, scratch / "rtl", run.config.accelerator.size())
    write_json(scratch / "rtl" / "provenance.json", {}, about)


def _simulate(run: Run, scratch: Path, about: Json) -> None:
    network = run.qnetwork()
    count = run.config.simulate.images
    test = run.dataset.test
    codes = image_codes(network, test.images[:count])
    try:
        with tqdm(total=len(codes), desc="simulate", unit="image") as bar:
            result = verify(
                network,
                run.folder / "rtl",
                codes,
                test.labels[:count],
                seed=run.config.seed,
                back_pressure=run.config.simulate.back_pressure,
                progress=lambda done: bar.update(done - bar.n),
            )
            bar.update(len(codes) - bar.n)
    except BenchFailed as error:
        raise Failed(f"simulate: the accelerator does not work: {error}") from None
    structure = check_products(network.tables, run.folder / "rtl")
    write_json(scratch / "verify.json", {**result, "structure": structure}, about)


def _check_verification(run: Run) -> None:
    """Raises Failed with the first difference when the Verilog does not compute what the reference does."""
    result = run.read("verify.json", "mismatches", "values_compared", "first_mismatch", "structure")
    if result["mismatches"]:
        first = result["first_mismatch"]
        raise Failed(
            f"simulate: {result['mismatches']} of {result['values_compared']} values differ from the reference; "
            f"first difference: image {first['image']}, boundary {first['boundary']}, index {first['index']}, "
            f"expected {first['expected']}, got {first['got']}"
        )
    structure = result["structure"]
    if structure["differing"]:  # in products that these images did not need
        first = structure["first"]
        raise Failed(
            f"simulate: {structure['differing']} of {structure['products']} products of the PE differ "
            f"from the multipliers' tables; the first: {first['component']}, bytes {first['a']} and {first['b']}, "
            f"expected {first['expected']}, got {first['got']}"
        )


def _synthesize(run: Run, scratch: Path, about: Json) -> None:
    settings = run.config.synthesize
    result = synthesize(run.folder / "rtl", find_liberty(settings.liberty))
    fpga = estimate(run.folder / "rtl", settings.fpga) if settings.fpga else None
    write_json(scratch / "synthesis.json", {**result, "fpga": fpga}, about)


def _cells(run: Run) -> Json:
    settings = run.config.synthesize
    liberty = find_liberty(settings.liberty)
    placed = nextpnr_version() if settings.fpga == "ecp5" else None
    return {"liberty": digest(liberty) if liberty else None, "fpga": settings.fpga, "nextpnr": placed}


def _report(run: Run, scratch: Path, about: Json) -> None:
    write_atomic(scratch / "report.html", report(run, about))


def _section(*names: str) -> Callable[[Run], Json]:
    """Settings that are sections of the configuration."""
    return lambda run: {name: run.config.model_dump()[name] for name in names}


def _data(run: Run) -> Json:
    return {"dataset": run.dataset_hash, "seed": run.config.seed}


def _settings(*parts: Callable[[Run], Json]) -> Callable[[Run], Json]:
    return lambda run: {key: value for part in parts for key, value in part(run).items()}


def _copies(run: Run) -> Json:
    return {"copies": run.config.copies}


def _may_lose(run: Run) -> Json:
    return {"may_lose": run.config.lost_before_finetuning()}


def _library(run: Run) -> Json:
    return {"library": run.library_hash}


def _growths(run: Run) -> Json:
    """What fitting may multiply weights by, where it may."""
    growths = run.config.growths()
    return {"growths": list(growths)} if len(growths) > 1 else {}


_FINETUNED = ("finetuned.safetensors", "finetuning.json")

STAGES: list[Stage[Run]] = [
    Stage(
        "train",
        outputs=("network.safetensors", "training.json"),
        make=_train,
        settings=_settings(_training, _data),
    ),
    Stage(
        "analyze",
        inputs=("network.safetensors",),
        outputs=("resilience.json", "resilience-groups.svg", "resilience-layers.svg"),
        make=_analyze,
        version=2,
        settings=_settings(_section("network", "train", "analyze"), _copies, _data),
    ),
    Stage(
        "assign",
        inputs=("network.safetensors", "training.json", "resilience.json"),
        outputs=("assignment.yaml", "selection.json"),
        make=_assign,
        version=9,
        settings=_settings(
            _section("network", "train", "quantize", "assign"), _may_lose, _copies, _data, _library, _growths
        ),
        require=lambda run: need_yosys(),
    ),
    Stage(
        "finetune",
        inputs=("network.safetensors", "assignment.yaml"),
        outputs=_FINETUNED,
        make=_finetune,
        version=6,
        settings=_settings(_section("network", "train", "quantize", "finetune"), _data, _library, _growths),
        require=lambda run: need_yosys(),
    ),
    Stage(
        "quantize",
        inputs=("network.safetensors", "training.json", "assignment.yaml", *_FINETUNED),
        outputs=("qmodel", "accuracy.json"),
        make=_quantize,
        version=8,
        settings=_settings(_section("network", "train", "quantize", "assign"), _copies, _data, _library, _growths),
        require=lambda run: need_yosys(),
    ),
    Stage(
        "generate",
        inputs=("qmodel",),
        outputs=("rtl",),
        make=_generate,
        version=2,
        settings=_settings(_section("accelerator"), _library),
        require=lambda run: need_yosys(),
    ),
    Stage(
        "simulate",
        inputs=("qmodel", "rtl"),
        outputs=("verify.json",),
        make=_simulate,
        settings=_settings(_section("simulate"), _data),
        check=_check_verification,
        require=lambda run: need_simulator(),
    ),
    Stage(
        "synthesize",
        inputs=("rtl",),
        outputs=("synthesis.json",),
        make=_synthesize,
        settings=_cells,
        require=lambda run: need_yosys(),
    ),
    Stage(
        "report",
        inputs=(
            "training.json",
            "resilience.json",
            "resilience-groups.svg",
            "resilience-layers.svg",
            "assignment.yaml",
            "selection.json",
            "accuracy.json",
            "rtl",
            "verify.json",
            "synthesis.json",
        ),
        outputs=("report.html",),
        make=_report,
        settings=_settings(lambda run: {"config": run.config.model_dump()}, _library),
    ),
]


def tell(text: str) -> None:
    """Progress, for the eyes of who waits."""
    print(f"[{text}]", file=sys.stderr, flush=True)


def stages_of(run: Run) -> list[Stage[Run]]:
    """The stages of a run: without finetune and what it makes where that is not configured."""
    if run.config.finetune.epochs:
        return STAGES
    return [
        replace(stage, inputs=tuple(name for name in stage.inputs if name not in _FINETUNED))
        for stage in STAGES
        if stage.name != "finetune"
    ]


def bring_up(run: Run, target: str) -> None:
    """Bring a stage and all that it needs up to date; see Pipeline.bring_up for what it raises."""
    run.check()
    Pipeline(stages_of(run), run.folder, run, run.provenance, tell).bring_up(target)
