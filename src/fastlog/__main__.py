"""``python -m fastlog`` is the command ``fastlog``."""

from fastlog.cli import main

if __name__ == "__main__":
    main(prog_name="fastlog")
