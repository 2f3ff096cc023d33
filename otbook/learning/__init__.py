"""Optimal transport inside networks: critics, generators, autoencoders, learned maps, and their scores."""

from ._autoencoder import aggregate_log_density, gaussian_kl, mmd2_unbiased, uncovered_share
from ._scores import ModeScores, mode_scores
from ._wgan import clip_weights_, gradient_penalty

__all__ = [
    "ModeScores",
    "aggregate_log_density",
    "clip_weights_",
    "gaussian_kl",
    "gradient_penalty",
    "mmd2_unbiased",
    "mode_scores",
    "uncovered_share",
]
