"""Work on a Ray cluster: connecting, and maps in the order of the input that outlive the loss of workers and nodes."""

from .connection import Session, connect
from .placing import map_in_actors, map_in_tasks

__all__ = ["Session", "connect", "map_in_actors", "map_in_tasks"]
