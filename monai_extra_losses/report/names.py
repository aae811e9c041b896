"""Names of classes in pictures."""

LONGEST_NAME = 28


def shown_name(name: str) -> str:
    """A name as matplotlib shows it as it is: not too long, and neither hidden nor a formula."""
    short = name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
    short = short.replace("$", r"\$")
    return f"\u200b{short}" if short.startswith("_") else short  # a legend leaves out what starts with _
