"""Optimal transport inside networks: critics, generators, autoencoders, learned maps, and their scores."""

from ._scores import ModeScores, mode_scores
from ._wgan import clip_weights_, gradient_penalty

__all__ = ["ModeScores", "clip_weights_", "gradient_penalty", "mode_scores"]
