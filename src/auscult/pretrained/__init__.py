"""Models that others trained: found in a folder or on the Hugging Face hub, loaded quietly, and refused in words."""

from .clap import CLAP, ClapTower, load_clap, log_mel
from .loading import Pretrained, choose_device, first_line, hub_commit, load
from .locating import Kind, Located, folder_digest, locate, split_revision

__all__ = [
    "CLAP",
    "ClapTower",
    "Kind",
    "Located",
    "Pretrained",
    "choose_device",
    "first_line",
    "folder_digest",
    "hub_commit",
    "load",
    "load_clap",
    "locate",
    "log_mel",
    "split_revision",
]
