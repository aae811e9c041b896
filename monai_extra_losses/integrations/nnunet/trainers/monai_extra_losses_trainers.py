"""Where nnU-Net's search, which imports the modules of a folder and asks them for a name, finds the trainers."""

from monai_extra_losses.integrations.nnunet.trainer import trainer_named


def __getattr__(name: str) -> type:
    if (found := trainer_named(name)) is None:
        raise AttributeError(name)
    return found
