"""The former place of names in `monai_extra_losses.bundle`, for configs that call them by it."""

from monai_extra_losses.bundle import __getattr__ as __getattr__
