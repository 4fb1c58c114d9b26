"""MMEB-mini: a small suite in the shape of MMEB-V2, drawn from pictures and facts that ordinary Python packages carry.

`DATA_CARD.md` beside this file lists sources, licences, counts and splits.
"""

from datamodules.mini.suite import data_revision, load_pairs, load_tasks

__all__ = ["data_revision", "load_pairs", "load_tasks"]
