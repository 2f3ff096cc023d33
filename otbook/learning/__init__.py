"""Optimal transport inside networks: critics, generators, autoencoders, learned maps, and their scores."""

from ._scores import ModeScores, mode_scores

__all__ = ["ModeScores", "mode_scores"]
