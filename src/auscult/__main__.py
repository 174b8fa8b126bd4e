"""``python -m auscult`` is the same as ``auscult``."""

from .cli import main

if __name__ == "__main__":
    main()
