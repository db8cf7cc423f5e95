"""The one shape legend. Einsums, comments and docstrings use these letters and no others.

B batch, T query positions, S key positions, D model width, N query heads, K key/value heads,
H head size, F feed-forward width, E experts, V vocabulary, L layers, P pipeline stages; of
recurrences I inner width, R size of a channel's state, G groups of heads.
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
}
