"""``python -m auscult`` is the same as ``auscult``."""

from .cli import run

if __name__ == "__main__":
    run()
