"""``python -m tests.histories``: the server of a nursery."""

from tests.histories.nursery import main

main()
