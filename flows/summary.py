"""What a run came to: the facts that the terminal's summary and the report show, gathered from the artefacts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from flows.fpga import in_words
from flows.run import Run
from flows.tables import table
from model.placement import option
from model.qnetwork import Format, Product, QNetwork, takes_signed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from model.multipliers.characterize import Characterisation
    from model.multipliers.component import Multiplier
    from model.operations import Operation
    from model.resilience import Resilience


NETWORKS = {
    "float": "float",
    "exact_8_bit": "8 bit, exact multipliers",
    "assigned": "8 bit, assigned multipliers",
    "finetuned": "8 bit, assigned multipliers, fine-tuned",
}
"""The networks in accuracy.json, the last only with fine-tuning, with the titles that summary and report show."""


PLACES = (", bottom", ", top")
"""Where magnitudes sit, by `align`, as an addition to the format's name."""


@dataclass(frozen=True)
class OperationFacts:
    """One operation of the network, with its multiplier if it has one."""

    key: str
    group: str
    group_resilient: bool
    multiplications: int
    tolerated_nm: float
    multiplier: str | None = None
    format: str | None = None
    moved: str = ""  # where magnitudes sit, as words, if not where the configuration says
    nm: float | None = None  # of the multiplier on the operation's real operands
    na: float | None = None
    cost: float | None = None  # of the multiplications of one inference
    exact_cost: float | None = None  # with exact multipliers


class Facts:
    """The artefacts of a run whose stages up to synthesize are made, read together."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.accuracy = run.read("accuracy.json", "float", "exact_8_bit", "assigned", "costs")
        self.selection = run.read("selection.json", "figures", "history", "warning")
        self.verify = run.read(
            "verify.json", "images", "values_compared", "mismatches", "cycles_per_image", "pe_utilisation", "array"
        )
        self.synthesis = run.read("synthesis.json", "top", "modules", "liberty", "fpga")

    @cached_property
    def network(self) -> QNetwork:
        """The quantised network."""
        return self.run.qnetwork()

    @cached_property
    def found(self) -> list[Operation]:
        """Step 1's operations, with their counts."""
        from model.operations import operations

        return operations(self.run.network())

    @cached_property
    def resilience(self) -> Resilience:
        """The outcome of steps 2 to 5."""
        from model.resilience import Resilience

        return Resilience.from_json(self.run.read("resilience.json"))

    @cached_property
    def operations(self) -> list[OperationFacts]:
        """All operations of the four groups, in the order of execution."""
        products = {key: product for key, product, _ in self.network.products()}
        rows = []
        for operation in self.found:
            if operation.group not in self.resilience.groups:  # no noise was injected there
                continue
            product = products.get(operation.key)
            moved = product is not None and self._moved(product)
            named = "" if product is None else option(product.component, product.align) if moved else product.component
            # none where assignment.yaml was given a format or place afterwards that takes other multipliers
            noise = self.selection["figures"].get(operation.key, {}).get(named, {})
            costs = self.accuracy["costs"]["operations"].get(operation.key, {})
            rows.append(
                OperationFacts(
                    operation.key,
                    operation.group,
                    self.resilience.groups[operation.group].resilient,
                    operation.counts.multiplications,
                    self.resilience.tolerated_nm(operation.key),
                    product.component if product else None,
                    product.format if product else None,
                    PLACES[product.align] if product and moved else "",
                    noise.get("nm"),
                    noise.get("na"),
                    costs.get("assigned"),
                    costs.get("exact"),
                )
            )
        return rows

    def _moved(self, product: Product) -> bool:
        """Whether magnitudes sit elsewhere than the configuration says."""
        return product.format == "sign-magnitude" and product.align != self.run.config.quantize.align

    @cached_property
    def components(self) -> list[Multiplier]:
        """The exact multipliers and those in use, in the library's order."""
        library = self.run.library
        rows = [row for row in self.operations if row.multiplier]
        used = {*(self.exact(row).name for row in rows), *(row.multiplier for row in rows)}
        return [component for name, component in library.components.items() if name in used]

    def exact(self, row: OperationFacts) -> Multiplier:
        """The exact multiplier that an operation's assigned one stands for."""
        return self.run.library.exact_of(takes_signed(cast(Format, row.format)))

    @cached_property
    def saved(self) -> float:
        """Fraction of exact multipliers' cost that the assignment saves."""
        return 1 - sum(row.cost or 0.0 for row in self.operations) / self.exact_cost

    @cached_property
    def exact_cost(self) -> float:
        """Of one inference with exact multipliers everywhere."""
        return sum(row.exact_cost or 0.0 for row in self.operations)

    @cached_property
    def levels(self) -> dict[str, float]:
        """What the assignment saves of the transistors at work during a multiplication, as a fraction: in the
        multiplier, with the rest of its PE, with the array's adders, and in the whole accelerator without its memories.

        Multipliers that are not selected hold still, so they are not at work; exact ones would need the same PE around
        them. Transistors stand for energy only where they switch alike.
        """
        modules, library = self.synthesis["modules"], self.run.library
        pe, rows = modules["pe"], [row for row in self.operations if row.multiplier]
        inside = {name: module["transistors"] for name, module in modules.items() if name in self.multiplier_modules}

        def share(number: int, whole: int) -> float:
            """Of `number` PEs' multipliers within `whole`, all of whose other transistors are at work."""
            around = whole - number * sum(inside.values())
            spent = full = 0
            for row in rows:
                exact, module = self.exact(row), library.get(str(row.multiplier)).module
                saved = exact.cost.transistors - inside.get(module, exact.cost.transistors)
                spent += row.multiplications * number * saved
                full += row.multiplications * (around + number * exact.cost.transistors)
            return spent / full

        number, array = pe["instances"], next((m for n, m in modules.items() if n.endswith(".array")), None)
        levels = {"multipliers": share(1, sum(inside.values())), "PEs": share(1, pe["transistors"])}
        if array is not None:
            levels["array with its adders"] = share(number, array["transistors"])
        return levels | {"accelerator without its memories": share(number, self.top["transistors"])}

    @cached_property
    def multiplier_modules(self) -> frozenset[str]:
        """The modules of the multipliers in the PE."""
        return frozenset(self.run.library.get(str(row.multiplier)).module for row in self.operations if row.multiplier)

    @property
    def measured(self) -> Mapping[str, Characterisation]:
        """The characterised costs of the library's components by name; empty where it is not characterised."""
        measured = self.run.library.measured
        return measured.components if measured else {}

    @property
    def cost_title(self) -> str:
        """What `saved` is a fraction of."""
        total: str = self.accuracy["costs"]["total"]
        return total

    @property
    def top(self) -> dict[str, Any]:
        """The whole accelerator's estimates."""
        modules: dict[str, dict[str, Any]] = self.synthesis["modules"]
        return modules[self.synthesis["top"]]


def accuracy_table(accuracy: dict[str, Any]) -> str:
    """The content of accuracy.json as text."""
    rows = [
        (title, *(f"{100 * accuracy[name][split]:.2f} %" for split in ("selection", "validation", "test")))
        for name, title in NETWORKS.items()
        if name in accuracy
    ]
    return table(("accuracy", "selection", "validation", "test"), rows)


def finetuning(run: Run) -> str:
    """The end of `redcane finetune`."""
    epochs = run.config.finetune.epochs
    return (
        f"{accuracy_table(run.read('accuracy.json', 'float', 'exact_8_bit', 'assigned', 'finetuned'))}\n\n"
        f"qmodel holds the fine-tuned network; give the later stages `--finetune {epochs}` too, "
        f"or put `finetune: {{epochs: {epochs}}}` into the configuration"
    )


def summary(run: Run) -> str:
    """The end of `redcane run`."""
    facts = Facts(run)
    multipliers = [
        (row.key, f"{row.multiplications:,}", row.multiplier, f"{row.format}{row.moved}")
        for row in facts.operations
        if row.multiplier
    ]
    checked, top = facts.verify, facts.top
    (rows, columns), cycles = checked["array"], checked["cycles_per_image"]["mean"]
    liberty = facts.synthesis["liberty"]
    size = f"{top['cells']:,} cells, {top['transistors']:,} transistors"
    if liberty:
        size += f", {top['area']:,.0f} um2 ({liberty['file']})"
    lines = [
        f"Run {run.config.name}: {run.config.dataset}, library {run.config.assign.library}",
        "",
        accuracy_table(facts.accuracy),
        "",
        table(("operation", "multiplications", "multiplier", "format"), multipliers, left=(0, 2, 3)),
        "",
        f"saved         {100 * facts.saved:.1f} % of {facts.cost_title}",
        "              of the transistors at work "
        + ", ".join(f"{100 * part:.1f} % ({name})" for name, part in facts.levels.items()),
        f"verified      {checked['images']} images, {checked['values_compared']:,} values, "
        f"{checked['mismatches']} mismatches",
        f"speed         {cycles:,.0f} cycles an image, {100 * checked['pe_utilisation']:.0f} % of the "
        f"{rows} x {columns} PEs' cycles used",
        f"size          {size}, and {top['memory_bits']:,} bits of memory",
        *([f"FPGA          {in_words(facts.synthesis['fpga'])}"] if facts.synthesis["fpga"] else []),
        f"report        {run.folder / 'report.html'}",
    ]
    return "\n".join(lines)
