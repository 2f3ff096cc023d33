"""Optimal transport inside networks: critics, generators, autoencoders, learned maps, and their scores."""

from ._autoencoder import aggregate_log_density, gaussian_kl, mmd2_unbiased, uncovered_share
from ._energy import minibatch_energy_distance
from ._geometric import SemidiscreteMap, fit_semidiscrete_map
from ._lipschitz import BjorckLinear, GroupSort, empirical_lipschitz, lipschitz_mlp, orthonormalise
from ._scores import ModeScores, mode_scores
from ._wgan import clip_weights_, gradient_penalty

__all__ = [
    "BjorckLinear",
    "GroupSort",
    "ModeScores",
    "SemidiscreteMap",
    "aggregate_log_density",
    "clip_weights_",
    "empirical_lipschitz",
    "fit_semidiscrete_map",
    "gaussian_kl",
    "gradient_penalty",
    "lipschitz_mlp",
    "minibatch_energy_distance",
    "mmd2_unbiased",
    "mode_scores",
    "orthonormalise",
    "uncovered_share",
]
