"""DeepCaps on the accelerator: equal to the reference at every boundary, and in the cycles that the model predicts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hw.cycles import predict
from hw.generate import generate
from hw.parameters import Size
from model.datasets import load
from model.deepcaps import DeepCaps, DeepCapsShape
from model.qnetwork import FORMATS, QConvCaps3D
from model.quantize import DEEPCAPS_OPERATIONS, image_codes, quantize
from sim.programs import Case, check_programs, cycle_fault
from sim.verify import verify
from tests import fuzz
from tests.test_sim_accelerator import COMPONENTS, TABLES

# 4 x 4 PEs: capsules of more dims than rows, votes of several blocks, and a batch; activations may lie outside.
BUILD = replace(fuzz.build(20), affine=True, multipliers=("wild", "signed_wilder"), spill=True)


def test_random_deepcaps_on_one_build(tmp_path: Path) -> None:
    cases: list[Case] = []

    def take(one: fuzz.Drawn) -> None:
        if any(isinstance(layer, QConvCaps3D) for layer in one.network.layers) and (case := one.case(BUILD)):
            cases.append(case)

    assert BUILD.deepcaps
    fuzz.each_drawn(1, BUILD, 40, take)
    assert {len(case.images) for case in cases} == {1, 2, 3}
    assert {p.format for case in cases for _, p, _ in case.network.products()} == set(FORMATS)
    faults = check_programs(BUILD.write(tmp_path), BUILD.parameters, cases, latency=20, hold=0.2)
    assert len(cases) > 10 and faults == [None] * len(cases)


@pytest.mark.slow
@pytest.mark.parametrize(("format", "batch"), [("sign-magnitude", 2), ("affine", 1)])
def test_every_layer_kind_at_full_channel_counts(tmp_path: Path, format: str, batch: int) -> None:
    """The paper's DeepCaps on images of 8 x 8, in which only the grids are smaller, with real activations."""
    digits = load("digits")
    torch.manual_seed(0)
    images = torch.from_numpy(digits.train.images[:32])
    network = quantize(DeepCaps(DeepCapsShape((8, 8, 1), 10)), images, dict.fromkeys(DEEPCAPS_OPERATIONS, format))
    network = network.with_components(dict.fromkeys((key for key, _, _ in network.products()), "exact"), TABLES)
    program = generate(network, COMPONENTS, tmp_path, Size(16, 16, batch))
    codes = image_codes(network, digits.test.images[:batch])
    result = verify(network, tmp_path, codes, digits.test.labels[:batch], back_pressure=0.1)
    assert (result["first_mismatch"], result["mismatches"]) == (None, 0)
    assert result["values_compared"] > 80_000 * batch
    assert cycle_fault(program, result["layers_first_batch"]) is None
    assert sum(cost.products for cost in predict(program).values()) == result["counters_first_batch"]["busy_pe_cycles"]
