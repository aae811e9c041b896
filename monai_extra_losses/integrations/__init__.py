"""The losses in other homes than MONAI's engines, a folder each, with the extra of its name."""
