"""Entry point of the command `monai-extra-losses`; the commands are in `cli.commands`."""

import sys
from collections.abc import Sequence

# Modules that come with the extra `[bundle]`.
_BUNDLE_MODULES = (
    "SimpleITK",
    "click",
    "fire",
    "ignite",
    "matplotlib",
    "nibabel",
    "pydicom",
    "scipy",
    "tensorboard",
    "tqdm",
    "yaml",
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command.

    Args:
        arguments: without the program's name; default: those of the process.

    Raises:
        SystemExit: always; code 0 when the command did what it should.
    """
    try:
        from monai_extra_losses.cli.commands import commands

        commands(args=None if arguments is None else list(arguments), prog_name="monai-extra-losses")
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in _BUNDLE_MODULES:
            raise
        sys.exit(
            f"monai-extra-losses needs {error.name}, which a plain installation of the losses leaves out; "
            "install the package again with its extra: pip install '.[bundle]' in the checkout, or 'FILE.whl[bundle]'"
        )


if __name__ == "__main__":
    main()
