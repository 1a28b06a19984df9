"""The updates of an adapter as matrices, without ever forming one: ``delta = B A``. No torch.

Everything that is asked of ``B A`` (its norm, its spectrum, how it agrees with another) follows from matrices as small
as the rank.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lorax_vlm.adapters.files import AdapterBytes, AdapterFiles, with_weights
from lorax_vlm.models.tensor_files import StoredTensor

ENERGY_SHARE = 0.95


@dataclass(frozen=True)
class Update:
    """One site's update ``B A``, the scaling folded into ``B``."""

    a: np.ndarray
    """``(R, D_in)``, float64."""
    b: np.ndarray
    """``(D_out, R)``, float64."""

    @property
    def rank(self) -> int:
        """Number of columns of ``B``."""
        return self.a.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """``(D_out, D_in)`` of the matrix that it changes."""
        return self.b.shape[0], self.a.shape[1]

    @cached_property
    def singular_values(self) -> np.ndarray:
        """Of ``B A``, descending: those of the small product of the triangles of ``QR(B)`` and ``QR(A^T)``."""
        left, right = np.linalg.qr(self.b).R, np.linalg.qr(self.a.T).R
        return np.linalg.svd(left @ right.T, compute_uv=False)

    @property
    def norm(self) -> float:
        """Frobenius norm."""
        return float(np.linalg.norm(self.singular_values))

    @property
    def effective_rank(self) -> float:
        """``exp`` of the entropy of the squared singular values' shares (Roy and Vetterli, 2007); 0 for no update."""
        energy = self.singular_values**2
        if not energy.sum():
            return 0.0
        shares = energy[energy > 0] / energy.sum()
        return float(np.exp(-(shares * np.log(shares)).sum()))

    def rank_for(self, share: float = ENERGY_SHARE) -> int:
        """Fewest singular values that hold this share of the squared norm; 0 for no update."""
        energy = np.cumsum(self.singular_values**2)
        return int(np.searchsorted(energy, share * energy[-1] * (1 - 1e-12)) + 1) if energy[-1] else 0

    def dot(self, other: "Update") -> float:
        """``<B A, B' A'>``, the sum of the products of equal places."""
        return float(((self.b.T @ other.b) * (self.a @ other.a.T)).sum())

    def cosine(self, other: "Update") -> float:
        """Of the angle between two updates; 0 where one does nothing."""
        norms = self.norm * other.norm
        return self.dot(other) / norms if norms else 0.0

    def __add__(self, other: "Update") -> "Update":
        """The exact sum, by concatenation: the ranks add up."""
        return Update(np.concatenate([self.a, other.a]), np.concatenate([self.b, other.b], axis=1))

    def __mul__(self, factor: float) -> "Update":
        """A multiple."""
        return Update(self.a, self.b * factor)

    @classmethod
    def of_singular(cls, left: np.ndarray, values: np.ndarray, right: np.ndarray) -> "Update":
        """``left diag(values) right`` with two factors of equal size.

        Args:
            left: Singular vectors, ``(D_out, R)``.
            values: Singular values, ``(R,)``.
            right: Singular vectors, ``(R, D_in)``.
        """
        root = np.sqrt(values)
        return cls(root[:, None] * right, left * root)

    def truncated(self, rank: int) -> "Update":
        """The closest update of at most this rank (Eckart and Young, 1936), its two factors of equal size."""
        q_b, r_b = np.linalg.qr(self.b)
        q_a, r_a = np.linalg.qr(self.a.T)
        u, s, vt = np.linalg.svd(r_b @ r_a.T)
        kept = min(rank, len(s))
        return Update.of_singular(q_b @ u[:, :kept], s[:kept], vt[:kept] @ q_a.T)

    def distance(self, other: "Update") -> float:
        """Norm of the difference, relative to this one's; infinite where this one alone does nothing."""
        difference = (self + other * -1.0).norm
        return difference / self.norm if self.norm else math.inf if difference else 0.0


Updates = Mapping[str, Update]
"""An adapter's, by site."""


def read_factors(tensors: Iterable[StoredTensor]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Every pair of factors ``A`` and ``B`` of a file, whatever else it holds; the scaling is not folded in."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for tensor in tensors:
        for factor in "AB":
            if tensor.name.endswith(f".lora_{factor}.weight") and len(tensor.shape) == 2:
                site = tensor.name.removesuffix(f".lora_{factor}.weight").removeprefix("base_model.model.")
                with np.errstate(invalid="ignore"):  # a NaN of half precision stays one, and is refused later
                    found.setdefault(site, {})[factor] = tensor.read().astype(np.float64)
    return {site: (pair["A"], pair["B"]) for site, pair in sorted(found.items()) if len(pair) == 2}


def read_updates(adapter: AdapterBytes | AdapterFiles) -> dict[str, Update]:
    """Every site's update, by module name.

    Raises:
        DamagedAdapter: It was read without its weights, and they are not the same any more.
    """
    adapter = with_weights(adapter)
    pairs = read_factors(adapter.tensors.values())
    return {site: Update(a, b * adapter.files.scaling(site)) for site, (a, b) in pairs.items()}


def total_norm(updates: Updates, sites: Sequence[str] | None = None) -> float:
    """Norm of all updates together, or of those at some sites."""
    chosen = updates.values() if sites is None else [updates[site] for site in sites]
    return float(np.linalg.norm([update.norm for update in chosen]))


def total_cosine(first: Updates, second: Updates, sites: Sequence[str]) -> float:
    """Of the angle between two adapters' updates at some sites together; 0 where one does nothing."""
    norms = total_norm(first, sites) * total_norm(second, sites)
    return sum(first[site].dot(second[site]) for site in sites) / norms if norms else 0.0


def total_distance(first: Updates, second: Updates) -> float:
    """Norm of the difference of all updates together, relative to the first's; infinite where the first does nothing.

    A site that one lacks, or has in another shape, is there for the other alone.
    """
    shared = {site for site in first if site in second and first[site].shape == second[site].shape}
    apart = [(first[site] + second[site] * -1.0).norm for site in shared]
    apart += [update.norm for site, update in (*first.items(), *second.items()) if site not in shared]
    norm, between = total_norm(first), float(np.linalg.norm(apart))
    if not norm:
        return math.inf if between else 0.0
    return between / norm
