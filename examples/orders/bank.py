"""What stands for a bank: sometimes it does not answer, and some cards it does not take.

Charging twice under one reference charges once, as with real ones: the reference is what makes a repeated call safe.
"""

import os
import random
import time

DOWN = float(os.environ.get("BANK_DOWN", "0.2"))  # how often it does not answer
BLOCKED = set(os.environ.get("BANK_BLOCKED", "stolen").split(","))


class BankDown(Exception):
    """No answer: another attempt may find it up."""


class CardBlocked(Exception):
    """The answer is no, and stays no."""


def charge(card: str, amount: int, reference: str) -> str:
    """Take the money; a receipt."""
    time.sleep(0.005)
    if random.random() < DOWN:
        raise BankDown("the bank does not answer")
    if card in BLOCKED:
        raise CardBlocked(f"the bank does not take {card!r}")
    return f"receipt-of-{reference}"
