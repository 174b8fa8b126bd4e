"""The public benchmark of copy detection: sounds, transformations, systems; ``run.py`` is its one command."""
