"""Optimal transport inside networks: critics, generators, autoencoders, maps, flows, and their scores."""

from ._adaptation import OTTransport, SinkhornTransport, UnbalancedTransport
from ._adaptation_classes import GroupLassoTransport, LaplaceTransport
from ._autoencoder import aggregate_log_density, gaussian_kl, mmd2_unbiased, uncovered_share
from ._continuous_flow import FlowResult, potential_flow
from ._energy import minibatch_energy_distance
from ._flow_matching import (
    PathSample,
    bridge_path,
    conditional_path,
    noisy_path,
    normalised_path_energy,
    path_energy,
)
from ._geometric import SemidiscreteMap
from ._geometric_fit import fit_semidiscrete_map
from ._icnn import ICNN
from ._lipschitz import BjorckLinear, GroupSort, empirical_lipschitz, lipschitz_mlp, orthonormalise
from ._maps import barycentric_projection, l2_uvp, monge_gap, plan_density, stochastic_dual
from ._measure_layers import ElementaryBlock, MeasurePooling, sinkhorn_attention, softmax_attention
from ._pairs import ot_cfm_pairs
from ._policy import GibbsLaw, SoftOptimum, blob_energy, gibbs, soft_bellman
from ._rollout import Rollout, returns_to_go, rollout, swing_ups, vector_environment
from ._scores import ModeScores, mode_scores
from ._sequence import (
    relaxed_word_movers_distance,
    sequence_ot_loss,
    soft_embeddings,
    word_centroid_distance,
    word_movers_distance,
)
from ._stacked import StackedMLP
from ._wgan import clip_weights_, gradient_penalty

__all__ = [
    "ICNN",
    "BjorckLinear",
    "ElementaryBlock",
    "FlowResult",
    "GibbsLaw",
    "GroupLassoTransport",
    "GroupSort",
    "LaplaceTransport",
    "MeasurePooling",
    "ModeScores",
    "OTTransport",
    "PathSample",
    "Rollout",
    "SemidiscreteMap",
    "SinkhornTransport",
    "SoftOptimum",
    "StackedMLP",
    "UnbalancedTransport",
    "aggregate_log_density",
    "barycentric_projection",
    "blob_energy",
    "bridge_path",
    "clip_weights_",
    "conditional_path",
    "empirical_lipschitz",
    "fit_semidiscrete_map",
    "gaussian_kl",
    "gibbs",
    "gradient_penalty",
    "l2_uvp",
    "lipschitz_mlp",
    "minibatch_energy_distance",
    "mmd2_unbiased",
    "mode_scores",
    "monge_gap",
    "noisy_path",
    "normalised_path_energy",
    "orthonormalise",
    "ot_cfm_pairs",
    "path_energy",
    "plan_density",
    "potential_flow",
    "relaxed_word_movers_distance",
    "returns_to_go",
    "rollout",
    "sequence_ot_loss",
    "sinkhorn_attention",
    "soft_bellman",
    "soft_embeddings",
    "softmax_attention",
    "stochastic_dual",
    "swing_ups",
    "uncovered_share",
    "vector_environment",
    "word_centroid_distance",
    "word_movers_distance",
]
