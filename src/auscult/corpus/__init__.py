"""Sources of clips: folders, manifests, archives of tars, Hugging Face data sets."""

from .clip import Clip, Skipped
from .source import Corpus, open_corpus

__all__ = ["Clip", "Corpus", "Skipped", "open_corpus"]
