"""nnU-Net: a trainer for each loss of configs/losses.yaml, and one for any other, found by nnU-Net's own search.

`monai-extra-losses nnunet-trainers` prints the line that shows nnU-Net where they are. Needs the extra `[nnunet]`.
"""

from pathlib import Path

from monai_extra_losses.integrations.nnunet.choice import CHOICE_VARIABLE, OWN_CHOICE, PREFIX, table_names

__all__ = ["CHOICE_VARIABLE", "TRAINER_VARIABLE", "trainer_folder", "trainer_names"]

TRAINER_VARIABLE = "nnUNet_extTrainer"
"""nnU-Net's environment variable of folders with trainers."""


def trainer_folder() -> Path:
    """The folder for that variable."""
    return Path(__file__).with_name("trainers")


def trainer_names() -> list[str]:
    """What `nnUNetv2_train -tr` takes: one per entry of configs/losses.yaml, and the one that is told its loss."""
    return [f"{PREFIX}{name}" for name in (*table_names(), OWN_CHOICE)]
