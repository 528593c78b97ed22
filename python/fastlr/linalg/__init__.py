"""Randomized decompositions: NumPy or torch in, the same kind out."""

from fastlr import _ops as _ops  # loads the core
from fastlr.linalg._balanced import ProjectionInfo
from fastlr.linalg.bilinear import BilinearInfo, BilinearResult, bilinear_lstsq
from fastlr.linalg.chebyshev_decomposition import chebyshev_tucker
from fastlr.linalg.chebyshev_tensor import ChebyshevTucker, ChebyshevTuckerInfo
from fastlr.linalg.completion import (
    Completion,
    CompletionHistory,
    CompletionInfo,
    TopK,
    complete,
)
from fastlr.linalg.constrained import EqualityInfo, EqualityMinimum, minimize_equality
from fastlr.linalg.cp_decomposition import cp
from fastlr.linalg.cp_tensor import CPInfo, CPTensor
from fastlr.linalg.cross_approximation import CrossInfo, CrossResult, cross
from fastlr.linalg.cur_decomposition import CURInfo, CURResult, cur
from fastlr.linalg.cur_index import CURIndex, CURSearchInfo, CURSearchResult
from fastlr.linalg.density import SpectralDensity, SpectralEstimate, spectral_density
from fastlr.linalg.diagonalization import (
    PerturbedEig,
    PerturbedEigInfo,
    perturb_then_diagonalize,
)
from fastlr.linalg.functional_decomposition import (
    FactorPosterior,
    FunctionalPrediction,
    FunctionalTucker,
    FunctionalTuckerHistory,
    FunctionalTuckerInfo,
    functional_tucker,
)
from fastlr.linalg.haar import random_orthogonal
from fastlr.linalg.hermitian import EighInfo, EighResult, nystrom, randomized_eigh
from fastlr.linalg.householder import (
    HouseholderVectors,
    householder_apply,
    householder_product,
    householder_vectors,
)
from fastlr.linalg.incremental import IncrementalSVD
from fastlr.linalg.interpolation import interpolative
from fastlr.linalg.joint import (
    JointSVDBounds,
    MatrixClusters,
    cluster_matrices,
    joint_svd_bounds,
)
from fastlr.linalg.kkt import KKTInfo, KKTSolution, solve_kkt
from fastlr.linalg.kronecker import KroneckerResult, nearest_kronecker
from fastlr.linalg.leverage import leverage_scores
from fastlr.linalg.low_rank_diagonal import (
    DiagonalInfo,
    DiagonalResult,
    low_rank_plus_diagonal,
)
from fastlr.linalg.monarch import MonarchResult, monarch_project
from fastlr.linalg.nonnegative import NMFInfo, NMFResult, SemiNMFResult, nmf, semi_nmf
from fastlr.linalg.norms import (
    EstimateInfo,
    NormEstimate,
    RankEstimate,
    RankInfo,
    estimate_norm,
    estimate_rank,
)
from fastlr.linalg.nuclear_completion import SoftImputeInfo, SoftImputePath, soft_impute
from fastlr.linalg.operators import LinearOperator
from fastlr.linalg.orthonormal import orthonormalize
from fastlr.linalg.pca import PCA, PCAInfo, pca
from fastlr.linalg.pivoting import PivotedQRInfo, PivotedQRResult, pivoted_qr
from fastlr.linalg.random import random_matrix
from fastlr.linalg.regression import LstsqInfo, LstsqResult, lstsq
from fastlr.linalg.results import (
    ConvergenceWarning,
    InterpolativeInfo,
    InterpolativeResult,
    SVDInfo,
    SVDResult,
    WeightedLowRank,
    WeightedLowRankInfo,
)
from fastlr.linalg.robust_decomposition import RobustPCAInfo, RobustPCAResult, robust_pca
from fastlr.linalg.sensing import SensingInfo, SensingResult, matrix_sensing
from fastlr.linalg.sketching import SketchOperator, sketch
from fastlr.linalg.streaming import (
    StreamingSVD,
    StreamingSVDInfo,
    StreamingSVDResult,
    streaming_svd,
)
from fastlr.linalg.svd import randomized_svd
from fastlr.linalg.top_eigenvector import (
    TopEigenvector,
    TopEigenvectorInfo,
    top_eigenvector_stream,
)
from fastlr.linalg.trace import TraceEstimate, TraceInfo, hutchpp
from fastlr.linalg.tucker_decomposition import tucker
from fastlr.linalg.tucker_tensor import TuckerInfo, TuckerTensor
from fastlr.linalg.volume_sampling import (
    RescaledSample,
    projection_dpp,
    volume_rescaled_sample,
    volume_sample,
)
from fastlr.linalg.weighted import weighted_low_rank

__all__ = [
    "PCA",
    "BilinearInfo",
    "BilinearResult",
    "CPInfo",
    "CPTensor",
    "CURIndex",
    "CURInfo",
    "CURResult",
    "CURSearchInfo",
    "CURSearchResult",
    "ChebyshevTucker",
    "ChebyshevTuckerInfo",
    "Completion",
    "CompletionHistory",
    "CompletionInfo",
    "ConvergenceWarning",
    "CrossInfo",
    "CrossResult",
    "DiagonalInfo",
    "DiagonalResult",
    "EighInfo",
    "EighResult",
    "EqualityInfo",
    "EqualityMinimum",
    "EstimateInfo",
    "FactorPosterior",
    "FunctionalPrediction",
    "FunctionalTucker",
    "FunctionalTuckerHistory",
    "FunctionalTuckerInfo",
    "HouseholderVectors",
    "IncrementalSVD",
    "InterpolativeInfo",
    "InterpolativeResult",
    "JointSVDBounds",
    "KKTInfo",
    "KKTSolution",
    "KroneckerResult",
    "LinearOperator",
    "LstsqInfo",
    "LstsqResult",
    "MatrixClusters",
    "MonarchResult",
    "NMFInfo",
    "NMFResult",
    "NormEstimate",
    "PCAInfo",
    "PerturbedEig",
    "PerturbedEigInfo",
    "PivotedQRInfo",
    "PivotedQRResult",
    "ProjectionInfo",
    "RankEstimate",
    "RankInfo",
    "RescaledSample",
    "RobustPCAInfo",
    "RobustPCAResult",
    "SVDInfo",
    "SVDResult",
    "SemiNMFResult",
    "SensingInfo",
    "SensingResult",
    "SketchOperator",
    "SoftImputeInfo",
    "SoftImputePath",
    "SpectralDensity",
    "SpectralEstimate",
    "StreamingSVD",
    "StreamingSVDInfo",
    "StreamingSVDResult",
    "TopEigenvector",
    "TopEigenvectorInfo",
    "TopK",
    "TraceEstimate",
    "TraceInfo",
    "TuckerInfo",
    "TuckerTensor",
    "WeightedLowRank",
    "WeightedLowRankInfo",
    "bilinear_lstsq",
    "chebyshev_tucker",
    "cluster_matrices",
    "complete",
    "cp",
    "cross",
    "cur",
    "estimate_norm",
    "estimate_rank",
    "functional_tucker",
    "householder_apply",
    "householder_product",
    "householder_vectors",
    "hutchpp",
    "interpolative",
    "joint_svd_bounds",
    "leverage_scores",
    "low_rank_plus_diagonal",
    "lstsq",
    "matrix_sensing",
    "minimize_equality",
    "monarch_project",
    "nearest_kronecker",
    "nmf",
    "nystrom",
    "orthonormalize",
    "pca",
    "perturb_then_diagonalize",
    "pivoted_qr",
    "projection_dpp",
    "random_matrix",
    "random_orthogonal",
    "randomized_eigh",
    "randomized_svd",
    "robust_pca",
    "semi_nmf",
    "sketch",
    "soft_impute",
    "solve_kkt",
    "spectral_density",
    "streaming_svd",
    "top_eigenvector_stream",
    "tucker",
    "volume_rescaled_sample",
    "volume_sample",
    "weighted_low_rank",
]
