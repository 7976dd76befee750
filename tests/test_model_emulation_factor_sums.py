"""Sums by products of bytes, and the kernel for GPUs, against the reference: on the CPU, and on a GPU where one is."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import EXACT, SIGNED, UNSIGNED, codes, image_codes, networks, wild_table

from model import reference
from model.emulation import Emulator, factor_sums
from model.emulation.factor_sums import INNER, FactorSums, multiplies_bytes, multiply
from model.emulation.terms import term_table
from model.qnetwork import (
    Coding,
    Product,
    QClassCaps,
    QConv,
    QConvLayer,
    QNetwork,
    Requantizer,
    Squash,
    exp_table,
)

CPU = torch.device("cpu")
UNIT = Requantizer(2**15, 16, 0, -127, 127)
CUT = (EXACT.astype(int) - np.outer(np.arange(256) & 7, np.arange(256) & 11)).astype(np.uint16)  # an error of rank 1
SHORT = EXACT & np.uint16(0xFFF0)  # of a high rank


@pytest.fixture(scope="module", autouse=True)
def bytes_are_multiplied() -> Iterator[None]:
    """Torch's product of bytes is wrong on a CPU without VNNI: there 32-bit integers stand in for it."""
    with pytest.MonkeyPatch.context() as patch:
        if not multiplies_bytes(CPU):
            patch.setattr(factor_sums, "multiplies_bytes", lambda device: True)
            patch.setattr(torch, "_int_mm", lambda a, b: a.int() @ b.int())
        yield


@st.composite
def products(draw: st.DrawFn) -> tuple[Product, np.ndarray]:
    table = draw(st.sampled_from((EXACT, CUT, SHORT)))
    kind = draw(st.sampled_from(("sign-magnitude", "affine", "twos-complement")))
    if kind == "affine":
        a, b = (Coding("affine", 1.0, draw(st.sampled_from((0, 1, 100, 255)))) for _ in range(2))
    else:
        a, b = draw(st.sampled_from((SIGNED, UNSIGNED))) if kind == "sign-magnitude" else SIGNED, SIGNED
    if kind == "twos-complement":
        table = (table.astype(int) >> 2).astype(np.int16)
    return Product(kind, a, b, SIGNED, UNIT, "drawn", draw(st.integers(0, 1))), table  # type: ignore[arg-type]  # drawn


@given(
    drawn=products(), seed=st.integers(0, 2**32 - 1), cin=st.integers(1, 9), cout=st.integers(1, 20),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)), stride=st.integers(1, 3), padding=st.integers(0, 2),
    count=st.integers(1, 3), memory=st.sampled_from((1, 2**14, 2**26)),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_convolutions(
    drawn: tuple[Product, np.ndarray], seed: int, cin: int, cout: int, kernel: tuple[int, int], stride: int,
    padding: int, count: int, memory: int,
) -> None:  # fmt: skip
    rng, (product, table) = np.random.default_rng(seed), drawn
    x = codes(rng, product.a, (count, 3 + seed % 3, 4, cin))
    bias = rng.integers(-(2**20), 2**20, cout).astype(np.int32)
    conv = QConv(codes(rng, product.b, (cout, *kernel, cin)), bias, stride, product, padding)
    network = QNetwork(x.shape[1:], product.a, (QConvLayer("conv", conv),), {"drawn": table})
    unit = FactorSums(network, {"conv.mac": term_table(product, table)}, CPU, memory)
    found = unit.convolution("conv.mac", conv, torch.from_numpy(x))
    for image, sums in zip(x, found.numpy(), strict=True):
        np.testing.assert_array_equal(sums, reference.convolution(conv, table, image))
    assert ("conv.mac" in unit._convolutions) or table is SHORT or product.format == "twos-complement"


@given(
    drawn=products(), seed=st.integers(0, 2**32 - 1), inputs=st.integers(1, 40), dim_in=st.integers(1, 9),
    classes=st.integers(1, 5), dim=st.integers(1, 9), count=st.integers(1, 4),
)  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_votes(
    drawn: tuple[Product, np.ndarray], seed: int, inputs: int, dim_in: int, classes: int, dim: int, count: int
) -> None:
    rng, (product, table) = np.random.default_rng(seed), drawn
    weights = codes(rng, product.b, (inputs, dim_in, classes, dim))
    squash = Squash.for_scales(0.01, SIGNED)
    layer = QClassCaps("caps", weights, product, product, product, exp_table(0.1), squash, 1)
    network = QNetwork((1, 1, 1), product.a, (layer,), {"drawn": table})
    terms = {key: term_table(product, table) for key, _, _ in network.products()}
    u = codes(rng, product.a, (count, inputs, dim_in))
    found = FactorSums(network, terms, CPU, 2**26).votes(layer, torch.from_numpy(u))
    wanted = reference.products(product, table, u[..., None, None], weights).sum(axis=2)
    np.testing.assert_array_equal(found.numpy(), wanted)


@pytest.mark.parametrize("shape", [(1, 1, 1), (17, 8, 8), (3, 1000, 5), (2, INNER + 9, 3)])
def test_products_of_bytes_are_exact_modulo_two_to_the_32(shape: tuple[int, int, int]) -> None:
    m, k, n = shape
    rng = np.random.default_rng(0)
    a, b = rng.integers(-128, 128, (m, k)), rng.integers(-128, 128, (k, n))
    a[0], b[:, 0] = -128, -128  # the largest sums: the last shape's leaves 30 bits
    found = multiply(torch.from_numpy(a.astype(np.int8)), torch.from_numpy(b.astype(np.int8)))
    np.testing.assert_array_equal(found.numpy(), (a @ b).astype(np.int32))


def test_a_processor_that_saturates_multiplies_no_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factor_sums, "multiplies_bytes", multiplies_bytes)  # as it is
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    monkeypatch.setattr(torch, "_int_mm", None)  # a call would fail
    rng = np.random.default_rng(0)
    product = Product("sign-magnitude", UNSIGNED, SIGNED, SIGNED, UNIT, "exact")
    x = codes(rng, UNSIGNED, (2, 4, 4, 3))
    conv = QConv(codes(rng, SIGNED, (5, 3, 3, 3)), np.zeros(5, np.int32), 1, product)
    network = QNetwork((4, 4, 3), UNSIGNED, (QConvLayer("conv", conv),), {"exact": EXACT})
    found = FactorSums(network, {"conv.mac": term_table(product, EXACT)}, CPU, 2**26)
    np.testing.assert_array_equal(
        found.convolution("conv.mac", conv, torch.from_numpy(x))[1].numpy(), reference.convolution(conv, EXACT, x[1])
    )


def test_the_kernels_for_gpus_in_tritons_interpreter() -> None:
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton (the extra `gpu`) is not installed")
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, str(here / "interpreted_kernels.py")], capture_output=True, text=True, check=False,
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(here.parent)},
    )  # fmt: skip
    if "only 0-dimensional arrays can be converted" in done.stderr:
        pytest.skip("the interpreter of Triton before 3.9 does not work with NumPy from 2.4")
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@given(networks(), st.integers(0, 2**32 - 1))
@settings(max_examples=5, deadline=None)  # each compiles kernels
def test_a_gpu_gives_every_boundary_of_the_reference(network: QNetwork, seed: int) -> None:
    images = image_codes(np.random.default_rng(seed), network, 2)
    trace = Emulator(network, device="cuda").run(images)
    for n, image in enumerate(images):
        for name, value in reference.run(network, image).items():
            np.testing.assert_array_equal(trace[name][n].cpu().numpy(), value, err_msg=name)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_looks_up_tables_without_factors() -> None:
    from model.emulation.table_kernel import sums

    rng = np.random.default_rng(0)
    terms = torch.from_numpy(wild_table(rng).astype(np.int32)).cuda()
    a, b = (torch.from_numpy(rng.integers(0, 256, (300, size)).astype(np.uint8)).cuda() for size in (200, 130))
    wanted = sum(terms[y.long()[None, :], x.long()[:, None]] for x, y in zip(a, b, strict=True))
    assert torch.equal(sums(terms, a, b), wanted)
