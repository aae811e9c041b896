"""The losses, one public name per line."""

__all__: list[str] = []
