"""What stands for a mail server: a line in a file for each e-mail."""

import os

OUTBOX = os.environ.get("OUTBOX", "outbox.txt")


def send(to: str, text: str) -> None:
    """Send an e-mail."""
    with open(OUTBOX, "a", encoding="utf-8") as outbox:
        outbox.write(f"to {to}: {text}\n")
