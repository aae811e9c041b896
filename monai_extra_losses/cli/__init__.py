"""The command `monai-extra-losses`."""

from monai_extra_losses.cli.entry import main as main
