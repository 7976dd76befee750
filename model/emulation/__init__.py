"""The emulation (docs/emulation.md): a quantised network computed for batches of images, bit for bit."""

from model.emulation.emulator import Emulator as Emulator
from model.emulation.emulator import convolved as convolved
