"""The embedded library: evolved by our own tool, within the limits of each recipe, graded."""

from itertools import pairwise

import pytest

from model.multipliers.embedded_family import EXACT, SIGNED_EXACT, UNIFORM, recipes
from model.multipliers.error_figures import error_figures
from model.multipliers.evolved import half_normal_weights, make
from model.multipliers.family import verilog
from model.multipliers.library import Library, load_library

SCALE = 100 * 65535 / 65536


@pytest.fixture(scope="module")
def library() -> Library:
    return load_library()


def test_it_holds_the_exact_multiplier_and_every_recipe(library: Library) -> None:
    joined = {name for name in library.components if name.startswith("mul8u_or")}  # test_model_multipliers_or_family
    made = {"mul8u_exact", "mul8s_exact", *(recipe.component for recipe in recipes())}
    assert set(library.components) - joined == made
    assert library.exact.name == "mul8u_exact" and library.cost_name == "transistors"
    assert sum(not component.is_exact for component in library.components.values()) >= 24


def test_every_component_tells_the_command_that_made_it(library: Library) -> None:
    for recipe in recipes():
        component = library.get(recipe.component)
        assert component.provenance == recipe.command()
        assert component.verilog.startswith(f"// Evolved by ReD-CaNe: {recipe.command()}\n")
        assert component.module == component.name and component.ports == ("A", "B", "O")


def test_every_component_keeps_the_limits_of_its_recipe(library: Library) -> None:
    for recipe in recipes():
        figures = library.get(recipe.component).figures
        limits = recipe.limits
        assert figures.mae_percent <= limits.mae and figures.wce_percent <= limits.wce
        if limits.bias is not None:
            assert SCALE * abs(figures.na) <= limits.bias
        if recipe.half_normal is not None:
            real = error_figures(library.get(recipe.component).table, half_normal_weights(recipe.half_normal))
            assert real.mae_percent <= limits.weighted_mae and SCALE * abs(real.na) <= limits.weighted_bias


def test_the_family_is_graded(library: Library) -> None:
    evolved = [library.get(recipe.component) for recipe in recipes()[:UNIFORM]]
    maes = [component.figures.mae_percent for component in evolved]
    assert maes == sorted(maes) and maes[0] <= 0.005 and 8 < maes[-1] <= 10
    transistors = [component.cost.transistors for component in evolved]
    assert all(after < before for before, after in pairwise(transistors[::2]))
    assert transistors[0] < library.exact.cost.transistors and transistors[-1] < 100


def test_the_verilog_of_the_exact_one_is_what_ariths_gen_makes(library: Library) -> None:
    pytest.importorskip("ariths_gen", reason="pip install 'redcane[library-tools]'")
    assert library.exact.verilog == verilog(EXACT)
    signed = library.exact_of(signed=True)
    assert signed.name == "mul8s_exact" and signed.signed and signed.verilog == verilog(SIGNED_EXACT)


@pytest.mark.slow
@pytest.mark.parametrize("component", ["mul8u_e24", "mul8u_s08"])
def test_a_recipe_makes_the_committed_circuit_again(library: Library, component: str) -> None:
    recipe = next(recipe for recipe in recipes() if recipe.component == component)
    assert make(recipe).verilog == library.get(component).verilog
