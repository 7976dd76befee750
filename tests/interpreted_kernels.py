"""The kernels for GPUs against the reference, in Triton's interpreter: what test_model_emulation_factor_sums.py runs.

A process of its own, since Triton reads TRITON_INTERPRET when a kernel is defined.
"""

from __future__ import annotations

import numpy as np
import torch
from random_networks import EXACT, SIGNED, UNSIGNED, codes

from model import reference
from model.emulation.byte_kernel import Scales
from model.emulation.factor_sums import _KernelConvolution
from model.emulation.factors import factorise
from model.emulation.table_kernel import sums
from model.emulation.terms import exact_terms, term_table
from model.qnetwork import Coding, Product, QConv, Requantizer

UNIT = Requantizer(2**15, 16, 0, -127, 127)
SHAPES = (  # images, height, width, channels in, out, kernel, stride, padding; 32 channels are read where they lie
    (3, 7, 6, 1, 20, 3, 1, 0), (2, 6, 5, 32, 5, 3, 2, 1), (1, 4, 4, 64, 33, 3, 1, 1), (2, 3, 3, 3, 7, 1, 1, 0),
    (2, 4, 3, 96, 16, 1, 3, 2), (1, 1, 1, 32, 1, 1, 1, 0), (2, 6, 5, 3, 9, 3, 2, 1),
)  # fmt: skip
A, B = np.arange(256)[:, None], np.arange(256)
TABLES = {
    "exact": EXACT,
    "errors of rank 1": (EXACT.astype(int) - (A & 7) * (B & 11)).astype(np.uint16),
    "nothing": np.zeros((256, 256), np.uint16),  # no factors at all
    "factors of several scales": ((A * B) + ((A >> 4) * (B >> 5) << 8) & 0xFFFF).astype(np.uint16),
    "the largest": np.full((256, 256), 65535, np.uint16),
}


def convolutions() -> None:
    """Every table and format, images together and one by one."""
    rng = np.random.default_rng(0)
    for name, table in TABLES.items():
        for a, b in ((UNSIGNED, SIGNED), (Coding("affine", 1.0, 100), Coding("affine", 1.0, 255))):
            product = Product("affine" if a.kind == "affine" else "sign-magnitude", a, b, SIGNED, UNIT, name, 1)
            factors = factorise(term_table(product, table), exact_terms(product), 8, 255)
            assert factors is not None, name
            for count, height, width, cin, cout, kernel, stride, padding in SHAPES:
                x = codes(rng, a, (count, height, width, cin))
                bias = rng.integers(-(2**20), 2**20, cout).astype(np.int32)
                conv = QConv(codes(rng, b, (cout, kernel, kernel, cin)), bias, stride, product, padding)
                for memory in (1, 2**31):
                    found = _KernelConvolution(factors, conv, torch.device("cpu"))(torch.from_numpy(x), memory)
                    for image, of_image in zip(x, found.numpy(), strict=True):
                        np.testing.assert_array_equal(of_image, reference.convolution(conv, table, image), name)


def scales() -> None:
    """One sum of groups with any scales."""
    rng = np.random.default_rng(0)
    for of_groups in ((1,), (8, 2, 2**15), (96, 40, 12, 6, 7, 5, 3, 1), (3 * 2**20, 2**20 - 1)):
        ordered = sorted(of_groups, key=lambda scale: -(scale & -scale))
        sizes, sums = rng.integers(1, 9, len(ordered)).tolist(), rng.integers(-(2**31), 2**31, len(ordered)).tolist()
        made = Scales(ordered, sizes, torch.device("cpu"))
        assert made.begins.tolist() == [sum(sizes[:group]) for group in range(len(sizes) + 1)]
        total = 0
        for ratio, of_group in zip(made.ratios.tolist(), [*sums, 0], strict=True):
            total = total * ratio + of_group
        wanted = sum(scale * of_group for scale, of_group in zip(ordered, sums, strict=True))
        assert (total - wanted) % 2**32 == 0, of_groups


def tables() -> None:
    """Sums of looked up terms."""
    torch.manual_seed(0)
    terms = torch.randint(-65535, 65536, (256, 256), dtype=torch.int32)
    for m, n, k in ((1, 1, 1), (70, 66, 37), (64, 64, 3), (5, 130, 9)):
        a, b = (torch.randint(0, 256, (k, size), dtype=torch.uint8) for size in (m, n))
        wanted = terms[b.long()[:, None, :], a.long()[:, :, None]].sum(dim=0)
        assert torch.equal(sums(terms, a, b).long(), wanted), (m, n, k)


if __name__ == "__main__":
    scales()
    convolutions()
    tables()
