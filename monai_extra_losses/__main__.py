"""`python -m monai_extra_losses`, where the script `monai-extra-losses` is not on the path."""

from monai_extra_losses.cli import main

if __name__ == "__main__":
    main()
