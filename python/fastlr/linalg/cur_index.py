"""Search by an expensive score: CUR embeddings from few scores, exact scores of the best."""

import math
import os
import reprlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, product
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastlr.linalg._arguments import Seed, as_integer, as_seed, at_least
from fastlr.linalg._arrays import Adapted, adapt, restored
from fastlr.linalg._autocast import as_written
from fastlr.linalg._state import State
from fastlr.linalg.interpolation import interpolative
from fastlr.linalg.random import random_matrix

Score = Callable[[list[Any], list[Any]], Any]
Pair = tuple[Any, Any]


@dataclass(frozen=True)
class CURSearchInfo:
    """What a search cost.

    Attributes
    ----------
    calls : int
        Pairs that were given to the score function, over all queries of the search.
    cached : int
        Pairs whose scores were known.
    rounds : int
        Times that the scores of all items were estimated.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> def score(queries, items):
    ...     return torch.tensor([1.0 * q * i for q, i in zip(queries, items)])
    >>> index = la.CURIndex.build(score, [1, 2], [3, 1, 2], anchors_q=2, anchors_i=1, seed=0)
    >>> index.search(5, k=1, budget=2).info
    CURSearchInfo(calls=2, cached=0, rounds=1)
    >>> index.search(5, k=1, budget=3).info
    CURSearchInfo(calls=1, cached=2, rounds=1)
    """

    calls: int
    cached: int
    rounds: int


class _SearchFields(NamedTuple):
    indices: Any
    scores: Any


class CURSearchResult(_SearchFields):
    """The best items that were scored, with their exact scores.

    Attributes
    ----------
    indices : array of int64, shape (k,) or (queries, k)
        Positions in the items of the index, best first.
    scores : array, shape (k,) or (queries, k)
        What the score function returned for them.
    info : CURSearchInfo
        Not part of the tuple.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> def score(queries, items):
    ...     return torch.tensor([1.0 * q * i for q, i in zip(queries, items)])
    >>> index = la.CURIndex.build(score, [1, 2], [3, 1, 2], anchors_q=2, anchors_i=1, seed=0)
    >>> indices, scores = index.search(5, k=2, budget=3)
    >>> indices.tolist(), scores.tolist()
    ([0, 2], [15.0, 10.0])
    """

    info: CURSearchInfo

    def __new__(cls, indices: Any, scores: Any, info: CURSearchInfo) -> "CURSearchResult":
        self = super().__new__(cls, indices, scores)
        self.info = info
        return self

    def __getnewargs__(self) -> tuple[Any, ...]:
        return (*self, self.info)


class CURIndex(State):
    """Find the best items for a query by a score that is expensive, with few calls of it.

    Made by `build` and `load`. A score matrix of nearly low rank is known by some of its rows and
    a few entries of a further one: R holds the scores of the anchor queries for all items, c those
    of a new query for a few items I, and c·pinv(R[:, I])·R estimates all of its scores. The best by
    that are scored exactly, and join I.

    Raises
    ------
    TypeError
        It was called, instead of `build` or `load`.

    Notes
    -----
    For one query there is one order in which items are scored: anchor items, then rounds of the
    best by the estimate from all before. A budget takes the head of that order, and the best of a
    longer head are never worse: recall does not fall when the budget grows. The order does not
    depend on what is cached.

    The pseudo-inverse drops singular values of R[:, I] up to θ = (Σ_i ρ_i²/n)^½, n the number of
    items, ρ_i the distance of row i of R from the span of the other rows; a direction below θ says
    less of a new query than what no row says is noise in it. Without that, estimates are at
    their worst where I has about as many items as there are anchor queries. If the score matrix has
    rank r, more than r anchor queries (in general position) make θ rounding, and r scored items in
    general position all estimates exact to rounding.

    Building takes k_q·n calls for k_q anchor queries, and O(k_q²·n) flops; a search `budget` calls
    for each query, less those that are cached, and a round of it 2·k_q·n flops and the SVD of a
    matrix of k_q rows and as many columns as items were scored, for each query.

    Scores are kept for every query and item that were scored, until `clear_cache`. With a score
    function that is not deterministic, or depends on what else is in a batch, the first counts.
    The score function is not part of the state: `load` needs it again. States are saved
    where queries and items are strings, numbers or tuples of them.

    Sources: Yadav, Monath, Angell, Zaheer, McCallum, "Efficient nearest neighbor search for
    cross-encoder models using matrix factorization", EMNLP 2022; Yadav, Monath, Zaheer, Fergus,
    McCallum, "Adaptive retrieval and scalable indexing for k-NN search with cross-encoders",
    ICLR 2024. Not differentiable.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> S = la.random_matrix(300, 4, seed=0) @ la.random_matrix(4, 1000, seed=1)
    >>> def score(queries, items):  # stands for a large network
    ...     return S[queries, items]
    >>> index = la.CURIndex.build(
    ...     score, range(200), range(1000), anchors_q=20, anchors_i=4, seed=0
    ... )
    >>> indices, scores = result = index.search(250, k=3, budget=10)
    >>> torch.equal(indices, S[250].topk(3).indices), result.info.calls
    (True, 10)
    """

    _FIELDS = (
        *("anchor_queries", "items", "table", "anchors", "noise"),
        *("batch_size", "dtype", "numpy", "cached"),
    )

    _score: Score
    _anchor_queries: list[Any]
    _items: list[Any]
    _table: Tensor  # R, anchor queries × items
    _anchors: Tensor  # I, the most important first
    _noise: float  # θ
    _batch_size: int
    _dtype: torch.dtype  # of the scores; with _numpy, that of results
    _numpy: bool
    _cache: dict[Any, dict[int, float]]  # exact scores by query and position of the item

    def __init__(self) -> None:
        raise TypeError("CURIndex: made by CURIndex.build or CURIndex.load, not by calling it")

    @classmethod
    @as_written
    def build(
        cls,
        score: Score,
        queries: Iterable[Any],
        items: Iterable[Any],
        *,
        anchors_q: int | Sequence[int],
        anchors_i: int | Sequence[int],
        seed: Seed = None,
        batch_size: int = 256,
    ) -> "CURIndex":
        """Score anchor queries against all items.

        Parameters
        ----------
        score : callable
            ``score(queries, items)`` gets two lists of the same length b and returns the scores of
            the b pairs: an array, Tensor or list of b numbers. Higher is better.
        queries : iterable of hashable
            Those that anchor queries are chosen from, like those to come.
        items : iterable
            What is searched: texts, identifiers, or anything that `score` takes.
        anchors_q : int or sequence of int
            Anchor queries: how many, drawn at random from the distinct ones, or their positions.
        anchors_i : int or sequence of int
            Items that are scored first for any query: how many, at most `anchors_q`, chosen by
            `interpolative` from the columns of R, or their positions.
        seed : int, torch.Generator or None
            Of the choices.
        batch_size : int
            Most pairs in a call of `score`.

        Returns
        -------
        CURIndex

        Raises
        ------
        ValueError
            No queries or items, an empty query, a number or a position out of range, an anchor
            that is there twice; scores of a wrong shape or not finite.
        TypeError
            A `score` that is not callable or returns no real numbers, a query that is not hashable,
            numbers that are not integers.

        Notes
        -----
        Kind (NumPy or torch), dtype and device of the first scores are those of all results;
        float16 and bfloat16 are computed in float32, integers are promoted.
        """
        caller = "CURIndex.build"
        known, items = _queries(queries, caller, "queries"), _listed(items, caller, "items")
        number = as_seed(seed, caller)
        self = cls.__new__(cls)
        self._score = _callable(score, caller)
        self._batch_size = at_least(batch_size, 1, caller, "batch_size")
        self._anchor_queries = _anchor_queries(anchors_q, known, number)
        most = min(len(self._anchor_queries), len(items))
        chosen = _positions(anchors_i, len(items), most, caller, "anchors_i")
        self._items = items
        first, self._table = self._score_anchor_queries(items, caller)
        self._dtype, self._numpy = first.dtype, first.numpy
        if isinstance(chosen, int):
            self._anchors = interpolative(self._table, chosen, axis=1, seed=number).indices
        else:
            self._anchors = torch.tensor(chosen, device=self._table.device)
        self._noise = _noise(self._table)
        self._cache = {}
        return self

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self._items)

    @as_written
    def search(self, query: Any, k: int, budget: int, *, step: int | None = 10) -> CURSearchResult:
        """Return the best of the items that a budget of calls finds.

        Parameters
        ----------
        query : hashable, or list of them
            One query, or a list of queries that are searched for together, so that calls of the
            score function are shared.
        k : int
            Number of items, between 1 and `budget`.
        budget : int
            Items that are scored exactly for each query, anchor items included, between 1 and all.
        step : int or None
            Items a round: the estimate is renewed after each. None: estimated once, from the anchor
            items.

        Returns
        -------
        CURSearchResult
            ``indices`` and ``scores``, both (k,), or (queries, k) for a list, best first.

        Raises
        ------
        ValueError
            `k`, `budget` or `step` out of range, an empty query or list; scores of a wrong shape
            or not finite. Scores that were obtained before are kept.
        TypeError
            A query that is not hashable, numbers that are not integers.
        """
        caller = "CURIndex.search"
        budget = _within(budget, len(self), "the number of items", caller, "budget")
        k = _within(k, budget, "the budget", caller, "k")
        step = len(self) if step is None else at_least(step, 1, caller, "step")
        queries = _queries(query if isinstance(query, list) else [query], caller, "query")
        distinct = list(dict.fromkeys(queries))
        chosen, scores, info = self._explore(distinct, budget, step, caller)
        # Stable: of equal scores the earlier stays first, whatever the budget.
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        rows = [distinct.index(each) for each in queries] if isinstance(query, list) else 0
        return CURSearchResult(
            self._restored(chosen.gather(1, order)[rows, :k]),
            self._restored(scores[rows, :k]),
            info,
        )

    @as_written
    def approximate(self, query: Any) -> Any:
        """Estimate the scores of all items from those of the anchor items.

        Parameters
        ----------
        query : hashable, or list of them
            As in `search`. As many calls as there are anchor items, less what is cached.

        Returns
        -------
        array, shape (n,) or (queries, n)

        Raises
        ------
        ValueError, TypeError
            As in `search`.
        """
        caller = "CURIndex.approximate"
        queries = _queries(query if isinstance(query, list) else [query], caller, "query")
        chosen = self._anchors.expand(len(queries), -1)
        scores, _ = self._exact(queries, chosen, caller)
        estimates = self._estimate(chosen, scores)
        return self._restored(estimates if isinstance(query, list) else estimates[0])

    @as_written
    def add(self, items: Iterable[Any]) -> None:
        """Append items: the anchor queries are scored against them, and nothing else is.

        Parameters
        ----------
        items : iterable

        Raises
        ------
        ValueError
            No items; scores of a wrong shape or not finite. The index is then what it was.
        """
        caller = "CURIndex.add"
        items = _listed(items, caller, "items")
        _, columns = self._score_anchor_queries(items, caller)
        self._table = torch.cat([self._table, columns.to(self._table)], 1)
        self._items = [*self._items, *items]
        self._noise = _noise(self._table)

    def clear_cache(self) -> None:
        """Forget the scores of past searches."""
        self._cache = {}

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of the whole state, without the score function; see `load`.

        Returns
        -------
        dict

        Raises
        ------
        TypeError
            A query or an item that is no string, number or tuple of them.
        """
        for value in (*self._anchor_queries, *self._items, *self._cache):
            _check_plain(value)
        return super().state_dict()

    @classmethod
    def load(  # type: ignore[override]
        cls, path: str | os.PathLike[str], score: Score, *, device: Any = "cpu"
    ) -> "CURIndex":
        """Read an index that `save` wrote; no code in the file is run.

        Parameters
        ----------
        path : str or path
        score : callable
            The score function of `build`.
        device : torch.device or str
            Where the tensors go.

        Returns
        -------
        CURIndex

        Raises
        ------
        ValueError
            Not such a file, or one that was truncated or altered.
        TypeError
            A `score` that is not callable.
        OSError
            A file that cannot be read.
        """
        checked = _callable(score, "CURIndex.load")
        self = super().load(path, device=device)
        self._score = checked
        return self

    # ---- scores ----

    def _score_anchor_queries(self, items: list[Any], caller: str) -> tuple[Adapted, Tensor]:
        """The first block of scores, as it came, and the rows of all."""
        blocks = list(self._call(product(self._anchor_queries, items), caller))
        scores = torch.cat([block.tensor[0] for block in blocks])
        return blocks[0], scores.reshape(len(self._anchor_queries), len(items))

    def _exact(self, queries: list[Any], chosen: Tensor, caller: str) -> tuple[Tensor, int]:
        """Scores of the chosen items, a row for each query, and how many of them were called."""
        rows = chosen.tolist()
        for query, row in zip(queries, rows, strict=True):
            known = self._cache.setdefault(query, {})
            if query in self._anchor_queries:
                scores = self._table[self._anchor_queries.index(query), row]
                known.update(zip(row, scores.tolist(), strict=True))
        pairs = dict.fromkeys(
            (query, item)
            for query, row in zip(queries, rows, strict=True)
            for item in row
            if item not in self._cache[query]
        )
        waiting = iter(pairs)
        for block in self._call(((query, self._items[item]) for query, item in pairs), caller):
            for score, (query, item) in zip(block.tensor[0].tolist(), waiting, strict=False):
                self._cache[query][item] = score
        table = [
            [self._cache[query][item] for item in row]
            for query, row in zip(queries, rows, strict=True)
        ]
        return self._table.new_tensor(table), len(pairs)

    def _call(self, pairs: Iterable[Pair], caller: str) -> Iterator[Adapted]:
        pairs = iter(pairs)
        while batch := list(islice(pairs, self._batch_size)):
            scores = self._score([query for query, _ in batch], [item for _, item in batch])
            yield _checked(scores, batch, caller)

    # ---- the search ----

    def _explore(
        self, queries: list[Any], budget: int, step: int, caller: str
    ) -> tuple[Tensor, Tensor, CURSearchInfo]:
        """Items in the order in which they are scored, a row for each query, and their scores."""
        chosen = self._anchors[:budget].expand(len(queries), -1)
        scores, calls = self._exact(queries, chosen, caller)
        rounds = 0
        while (done := chosen.shape[1]) < budget:
            estimates = self._estimate(chosen, scores).scatter(1, chosen, -math.inf)
            # Cut after it is sorted: the order must not depend on the budget.
            best = estimates.topk(min(step, len(self) - done)).indices[:, : budget - done]
            found, called = self._exact(queries, best, caller)
            chosen, scores = torch.cat([chosen, best], 1), torch.cat([scores, found], 1)
            calls, rounds = calls + called, rounds + 1
        return chosen, scores, CURSearchInfo(calls, chosen.numel() - calls, rounds)

    def _estimate(self, chosen: Tensor, scores: Tensor) -> Tensor:
        """c·pinv(R[:, I])·R for each query: I a row of `chosen`, c one of `scores`."""
        intersections = self._table.mT[chosen]  # queries × items × anchor queries
        U, S, Vh = torch.linalg.svd(intersections, full_matrices=False)
        rounding = max(intersections.shape[1:]) * torch.finfo(S.dtype).eps * S[:, :1]
        kept = rounding.clamp_min(self._noise) < S
        coordinates = (U.mT @ scores[..., None])[..., 0]
        coordinates = torch.where(kept, coordinates / S, 0.0)
        estimates: Tensor = (coordinates[:, None] @ Vh)[:, 0] @ self._table
        return estimates

    def _restored(self, result: Tensor) -> Any:
        return restored(result, self._dtype, numpy=self._numpy)

    # ---- what is saved of the cache ----

    @property
    def _cached(self) -> list[tuple[Any, Tensor, Tensor]]:
        return [
            (query, torch.tensor(list(known)), torch.tensor(list(known.values())).double())
            for query, known in self._cache.items()
        ]

    @_cached.setter
    def _cached(self, cached: list[tuple[Any, Tensor, Tensor]]) -> None:
        self._cache = {
            query: dict(zip(positions.tolist(), scores.tolist(), strict=True))
            for query, positions, scores in cached
        }


def _noise(table: Tensor) -> float:
    """θ: the root of the sum over rows of the mean squared residual on the span of the others.

    The squared norm of the residual of row i is 1/(R·Rᵀ)⁻¹[i, i].
    """
    R = torch.linalg.qr(table.mT, mode="r")[1].mT  # the same R·Rᵀ, in fewer columns
    U, S, _ = torch.linalg.svd(R, full_matrices=True)
    limits = torch.finfo(S.dtype)
    # Dependent rows have a residual of rounding, and a table of zeros one of nothing.
    least = max(math.sqrt(max(table.shape)) * limits.eps * float(S[0]), limits.tiny)
    S = torch.nn.functional.pad(S, (0, len(U) - len(S))).clamp_min(least)
    residuals = 1 / torch.linalg.vector_norm(U / S, dim=1)
    return float(residuals.norm()) / math.sqrt(table.shape[1])


def _checked(scores: Any, batch: list[Pair], caller: str) -> Adapted:
    array = scores.detach() if isinstance(scores, Tensor) else np.asarray(scores)
    if tuple(array.shape) != (len(batch),):
        raise ValueError(
            f"{caller}: score must return shape ({len(batch)},), a number for each pair, "
            f"got {tuple(array.shape)}"
        )
    adapted = adapt(array[None], caller, "the scores")
    finite = adapted.tensor[0].isfinite()
    if not bool(finite.all()):
        first = int(finite.logical_not().nonzero()[0])
        query, item = map(reprlib.repr, batch[first])
        raise ValueError(
            f"{caller}: score must return finite numbers, got {adapted.tensor[0, first].item()} "
            f"for query {query} and item {item}"
        )
    return adapted


# ---- arguments ----


def _callable(score: Any, caller: str) -> Score:
    if not callable(score):
        raise TypeError(f"{caller}: score must be a function, got {score!r}")
    function: Score = score
    return function


def _listed(values: Any, caller: str, name: str) -> list[Any]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TypeError(f"{caller}: {name} must be a list, got {type(values).__name__}")
    listed = list(values)
    if not listed:
        raise ValueError(f"{caller}: {name} must not be empty, got none")
    return listed


def _queries(values: Any, caller: str, name: str) -> list[Any]:
    """A list of queries, all of them hashable and none empty."""
    queries = _listed(values, caller, name)
    for index, query in enumerate(queries):
        try:
            hash(query)
        except TypeError:
            raise TypeError(
                f"{caller}: a query must be hashable, got {type(query).__name__} at index {index}"
            ) from None
        if query is None or (isinstance(query, str | bytes | tuple) and not query):
            raise ValueError(f"{caller}: a query must not be empty, got {query!r} at index {index}")
    return queries


def _anchor_queries(anchors: Any, queries: list[Any], seed: int) -> list[Any]:
    caller, name = "CURIndex.build", "anchors_q"
    distinct = list(dict.fromkeys(queries))
    chosen = _positions(anchors, len(queries), len(distinct), caller, name)
    if isinstance(chosen, int):
        draws = random_matrix(len(distinct), 1, seed=seed, dtype=torch.float64)[:, 0]
        return [distinct[position] for position in draws.argsort()[:chosen].tolist()]
    found = [queries[position] for position in chosen]
    if len(set(found)) < len(found):
        twice = next(query for query in found if found.count(query) > 1)
        raise ValueError(f"{caller}: {name} must be distinct, got {reprlib.repr(twice)} twice")
    return found


def _positions(anchors: Any, size: int, most: int, caller: str, name: str) -> int | list[int]:
    """A number between 1 and `most`, or positions below `size`, each of them once."""
    if not isinstance(anchors, Iterable):
        number = as_integer(anchors, caller, name)
        if not 1 <= number <= most:
            raise ValueError(f"{caller}: {name} must be between 1 and {most}, got {number}")
        return number
    positions = [as_integer(each, caller, name) for each in _listed(anchors, caller, name)]
    for position in positions:
        if not 0 <= position < size:
            raise ValueError(
                f"{caller}: {name} must be at least 0 and below {size}, got {position}"
            )
    if len(set(positions)) < len(positions):
        twice = next(position for position in positions if positions.count(position) > 1)
        raise ValueError(f"{caller}: {name} must be distinct, got {twice} twice")
    return positions


def _within(value: Any, most: int, what: str, caller: str, name: str) -> int:
    number = as_integer(value, caller, name)
    if not 1 <= number <= most:
        raise ValueError(f"{caller}: {name} must be between 1 and {what} = {most}, got {number}")
    return number


def _check_plain(value: Any) -> None:
    """What can be read from a file without running code."""
    if isinstance(value, tuple):
        for item in value:
            _check_plain(item)
    # Not of a subclass: that would be restored by its own code.
    elif type(value) not in (str, int, float, bool):
        raise TypeError(
            "CURIndex.state_dict: queries and items must be strings, numbers or tuples of them, "
            f"got {type(value).__name__}"
        )
