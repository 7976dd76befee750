"""Step 1: the operations found in a network, against counts made by hand."""

import subprocess
import sys

from model.capsnet import CapsNet, CapsNetShape
from model.operations import GROUPS, Counts, operations, total

MNIST = CapsNetShape(
    image=(28, 28, 1), conv_channels=256, conv_kernel=9, primary_types=32, primary_dim=8,
    primary_kernel=9, primary_stride=2, classes=10, class_dim=16,
)  # fmt: skip
SMALL = CapsNetShape(
    image=(6, 5, 2), conv_channels=3, conv_kernel=3, primary_types=2, primary_dim=4,
    primary_kernel=2, primary_stride=1, classes=5, class_dim=6, iterations=2,
)  # fmt: skip


def test_the_original_capsnet() -> None:
    network = CapsNet(MNIST)
    found = {operation.key: operation for operation in operations(network)}
    multiplications = total(list(found.values())).multiplications
    assert MNIST.capsules == 1152
    assert round(network.encoder_parameters() / 1e6, 1) == 6.8
    assert round(multiplications / 1e6, 1) == 201.8
    assert 0.94 < found["primary.mac"].counts.multiplications / multiplications < 0.96
    assert found["primary.squash"].shape == (1152, 8)
    assert found["classcaps.softmax"].counts.exponentials == 3 * 1152 * 10


def test_every_operation_of_a_small_network_by_hand() -> None:
    # conv1: 4x3 positions, K = 2*3*3; primary: 3x2 positions, K = 3*2*2, 12 capsules of 4
    expected = {
        "conv1.mac": ("mac", (3, 4, 3), 1, Counts(36 * 18, 36 * 18)),
        "conv1.relu": ("activation", (3, 4, 3), 1, Counts()),
        "primary.mac": ("mac", (8, 3, 2), 1, Counts(48 * 12, 48 * 12)),
        "primary.squash": ("activation", (12, 4), 1, Counts(12 * 8, 12 * 4, 12, 0, 12)),
        "classcaps.votes": ("mac", (12, 5, 6), 1, Counts(360 * 4, 360 * 3)),
        "classcaps.softmax": ("softmax", (12, 5), 2, Counts(0, 2 * 12 * 4, 2 * 60, 2 * 60)),
        "classcaps.weighted_sum": ("mac", (5, 6), 2, Counts(2 * 30 * 12, 2 * 30 * 11)),
        "classcaps.squash": ("activation", (5, 6), 2, Counts(2 * 5 * 12, 2 * 5 * 6, 2 * 5, 0, 2 * 5)),
        "classcaps.agreement": ("logits", (12, 5), 1, Counts(60 * 6, 60 * 6)),
    }
    found = operations(CapsNet(SMALL))
    assert {o.key: (o.group, o.shape, o.iterations, o.counts) for o in found} == expected
    assert list(expected) == [o.key for o in found], "order of execution"
    assert {o.group for o in found} == set(GROUPS)


def test_the_names_load_without_torch() -> None:
    code = "import model.operations, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
