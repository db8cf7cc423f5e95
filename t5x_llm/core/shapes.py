"""The one shape legend. Einsums, comments, docstrings and annotations use these and no others.

B batch, T query positions, S key positions, D model width, N query heads, K key/value heads,
H head size, F feed-forward width, E experts, V vocabulary, L layers, P pipeline stages; of
recurrences I inner width, R size of a channel's state, G groups of heads, A channels of RWKV's
sums; of convolutions C channels; of routing M tokens, k choices of a token.

Annotations are jaxtyping's, ``hidden: Float[Array, "B T D"]``: within one call a name has one size.
Sizes without a letter have one of ``NAMES``. ``*B`` is any number of leading axes, ``#B`` B or 1,
``...`` axes that are not named, ``_`` an axis of any size, and a digit that size. The space in
``" B"`` tells the linter that this is no name of Python.
"""

LEGEND = {
    "B": "batch",
    "T": "query positions",
    "S": "key positions",
    "D": "model width",
    "N": "query heads",
    "K": "key/value heads",
    "H": "head size",
    "F": "feed-forward width",
    "E": "experts",
    "V": "vocabulary",
    "L": "layers",
    "P": "pipeline stages",
    "I": "inner width",
    "R": "state size",
    "G": "groups of heads",
    "A": "channels of RWKV's sums",
    "C": "channels of a convolution",
    "M": "tokens that are routed",
    "k": "choices of a token",
}

NAMES = {
    "buckets": "buckets of relative positions",
    "devices": "devices along axes of the mesh",
    "features": "axes of what a cache keeps of a token or a row",
    "heads": "heads, some of them repeated",
    "hidden": "width between two maps that make rows",
    "mini_batch": "tokens of an inner step",
    "pairs": "pairs of channels that are rotated",
    "rows": "rows of a buffer, or of a padded table",
    "shape": "all axes, whatever they are",
    "taps": "tokens before the first that a layer reads",
    "units": "units of a group of blocks",
    "values": "head size of the values",
    "virtual": "virtual tokens",
}
